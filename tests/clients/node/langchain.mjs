// LangChain for JavaScript, `@langchain/openai`.

import { HumanMessage, SystemMessage, ToolMessage } from '@langchain/core/messages'
import { ChatOpenAI } from '@langchain/openai'
import { z } from 'zod'

import {
  BASE_URL,
  WEATHER_TOOL,
  Weather,
  cancelled,
  leaks,
  main,
  newKey,
  release,
  runs,
  scenario,
} from './driving.mjs'

// Retries are off, so that a failure is seen as the server sent it; one scenario turns them on.
const chat = (model, options = {}) =>
  new ChatOpenAI({
    model,
    apiKey: 'test',
    timeout: 20_000,
    maxRetries: 0,
    configuration: { baseURL: BASE_URL },
    ...options,
  })
const CityWeather = z.object({ city: z.string(), degrees: z.number() })

async function collect(stream) {
  let whole
  const pieces = []
  for await (const chunk of stream) {
    if (chunk.content) pieces.push(chunk.content)
    whole = whole ? whole.concat(chunk) : chunk
  }
  return { pieces, whole }
}

const finish = (message) => message.response_metadata.finish_reason
const tokens = ({ usage_metadata: usage }) => ({
  input: usage.input_tokens,
  output: usage.output_tokens,
  total: usage.total_tokens,
  cached: usage.input_token_details.cache_read,
  reasoning: usage.output_token_details.reasoning,
})

async function failure(error, key) {
  return {
    error: error.constructor.name,
    status: error.status ?? null,
    code: error.code ?? null,
    request_id: Boolean(error.requestID),
    leaks: leaks(error),
    runs: await runs(key),
  }
}

async function expectFailure(model, options = {}) {
  const key = newKey()
  try {
    return { answer: (await chat(model, options).invoke(key)).content }
  } catch (error) {
    return failure(error, key)
  }
}

// --- answers

scenario('plain', async () => {
  const message = await chat('echo').invoke('hello')
  return { text: message.content, finish: finish(message) }
})

scenario('streamed', async () => {
  const { pieces, whole } = await collect(await chat('stream').stream('hello'))
  return { pieces, finish: [finish(whole)] }
})

scenario('whole', async () => ({ text: (await chat('stream').invoke('hello')).content }))

scenario('live', async () => {
  const key = newKey()
  const pieces = []
  for await (const chunk of await chat('slow').stream(key)) {
    if (chunk.content) {
      pieces.push(chunk.content)
      await release(key)
    }
  }
  return { pieces, runs: await runs(key) }
})

scenario('quiet', async () => ({ text: (await collect(await chat('quiet').stream('hello'))).pieces.join('') }))

scenario('reasoning', async () => {
  const message = await chat('reason').invoke('hello')
  return { reasoning: message.additional_kwargs.reasoning_content ?? null, text: message.content }
})

scenario('reasoning_streamed', async () => {
  const { whole } = await collect(await chat('reason').stream('hello'))
  return { reasoning: whole.additional_kwargs.reasoning_content ?? null, text: whole.content }
})

scenario('refusal', async () => {
  const message = await chat('refuse').invoke('hello')
  return { refusal: message.additional_kwargs.refusal ?? null, text: message.content }
})

scenario('refusal_streamed', async () => {
  const { whole } = await collect(await chat('refuse').stream('hello'))
  return { refusal: whole.additional_kwargs.refusal ?? null, text: whole.content }
})

const citations = ({ additional_kwargs, response_metadata, contentBlocks }) => [
  ...(additional_kwargs.annotations ?? response_metadata.annotations ?? []),
  ...contentBlocks.flatMap((block) => block.annotations ?? []),
]

scenario('sources', async () => {
  const message = await chat('cite').invoke('hello')
  return { text: message.content, sources: citations(message) }
})

scenario('sources_streamed', async () => {
  const { whole } = await collect(await chat('cite').stream('hello'))
  return { text: whole.content, sources: citations(whole) }
})

scenario('usage', async () => tokens(await chat('usage').invoke('hello')))
scenario('usage_streamed', async () => tokens((await collect(await chat('usage').stream('hello'))).whole))

scenario('length', async () => {
  const message = await chat('length').invoke('hello')
  return { text: message.content, finish: finish(message) }
})

scenario('structured', () =>
  chat('json').withStructuredOutput(CityWeather, { method: 'jsonSchema' }).invoke('Weather?'),
)

scenario('structured_streamed', async () => {
  const model = chat('json').withStructuredOutput(CityWeather, { method: 'jsonSchema' })
  let last
  for await (const value of await model.stream('Weather?')) last = value
  return last
})

scenario('choices', async () => {
  const { generations } = await chat('echo', { n: 2 }).generate([[new HumanMessage('hello')]])
  return { texts: generations[0].map(({ text }) => text) }
})

scenario('stop', async () => {
  const message = await chat('stream', { stop: ['llo'] }).invoke('hello')
  return { text: message.content, finish: finish(message) }
})

scenario('stop_streamed', async () => {
  const { pieces, whole } = await collect(await chat('stream', { stop: ['llo'] }).stream('hello'))
  return { text: pieces.join(''), finish: [finish(whole)] }
})

scenario('extras', async () => {
  const modelKwargs = { user: 'ada', metadata: { team: 'red' }, top_k: 3 }
  const arrived = JSON.parse((await chat('params', { modelKwargs }).invoke('hello')).content)
  return { extra: arrived.extra, user: arrived.user, metadata: arrived.metadata }
})

scenario('legacy_functions', async () => {
  const model = chat('client-tool').withConfig({ functions: [WEATHER_TOOL.function] })
  const message = await model.invoke(newKey())
  const { name, arguments: text } = message.additional_kwargs.function_call
  return { name, arguments: JSON.parse(text), finish: finish(message) }
})

scenario('parameters', async () => {
  const options = { temperature: 0.5, maxTokens: 50, modelKwargs: { seed: 7 } }
  const messages = [
    new SystemMessage('Be brief.'),
    new HumanMessage({
      content: [
        { type: 'text', text: 'What is this?' },
        { type: 'image_url', image_url: { url: `data:image/png;base64,${btoa('png')}` } },
      ],
    }),
  ]
  const arrived = JSON.parse((await chat('params', options).invoke(messages)).content)
  return { params: arrived.params, messages: arrived.messages.map(({ role }) => role) }
})

// --- tools

async function converse(model, turn) {
  const weather = new Weather()
  const bound = chat(model).bindTools([WEATHER_TOOL])
  const messages = [new HumanMessage(newKey())]
  const texts = []
  const reasons = []
  for (let round = 0; round < 3; round++) {
    const message = await turn(bound, messages)
    reasons.push(finish(message))
    if (message.content) texts.push(message.content)
    if (message.invalid_tool_calls?.length) throw new Error(JSON.stringify(message.invalid_tool_calls))
    if (!message.tool_calls?.length) break
    messages.push(message)
    for (const { id, name, args } of message.tool_calls) {
      if (name !== 'get_weather') throw new Error(name)
      messages.push(new ToolMessage({ tool_call_id: id, content: weather.call(args) }))
    }
  }
  return { executed: weather.executed, texts, finish: reasons }
}

const wholeTurn = (bound, messages) => bound.invoke(messages)
const streamedTurn = async (bound, messages) => (await collect(await bound.stream(messages))).whole

for (const [name, model] of [
  ['client_tool', 'client-tool'],
  ['two_tools', 'two-tools'],
  ['server_tool', 'server-tool'],
  ['mixed_tools', 'mixed'],
]) {
  scenario(name, () => converse(model, wholeTurn))
  scenario(`${name}_streamed`, () => converse(model, streamedTurn))
}

scenario('two_tools_by_hand', async () => {
  const calls = []
  for await (const chunk of await chat('two-tools').bindTools([WEATHER_TOOL]).stream(newKey())) {
    for (const delta of chunk.tool_call_chunks ?? []) {
      calls[delta.index] ??= { id: delta.id, name: '', arguments: '' }
      calls[delta.index].name += delta.name ?? ''
      calls[delta.index].arguments += delta.args ?? ''
    }
  }
  return { calls }
})

// --- failures

scenario('fail_before', () => expectFailure('fail-before'))

scenario('fail_before_streamed', async () => {
  const key = newKey()
  try {
    await collect(await chat('fail-before').stream(key))
  } catch (error) {
    return failure(error, key)
  }
})

scenario('fail_status', () => expectFailure('fail-status'))
scenario('fail_mid', () => expectFailure('fail-mid'))

scenario('retries', async () => {
  const { runs } = await expectFailure('fail-before', { maxRetries: 1 })
  return { runs }
})

async function brokenStream(model) {
  const key = newKey()
  const pieces = []
  const reasons = []
  try {
    for await (const chunk of await chat(model).stream(key)) {
      if (chunk.content) {
        pieces.push(chunk.content)
        await release(key)
      }
      if (finish(chunk)) reasons.push(finish(chunk))
    }
  } catch (error) {
    return { pieces, finish: reasons, error, runs: await runs(key) }
  }
  return { pieces, finish: reasons }
}

for (const [name, model] of [
  ['fail_mid_streamed', 'fail-mid'],
  ['fail_late_streamed', 'fail-late'],
  ['fail_quiet_streamed', 'fail-quiet'],
]) {
  scenario(name, async () => {
    const { error, ...seen } = await brokenStream(model)
    return { ...seen, error: error.constructor.name, code: error.code ?? null, leaks: leaks(error) }
  })
}

scenario('give_up_streamed', async () => {
  const { error, ...seen } = await brokenStream('give-up')
  return { ...seen, error: error.constructor.name, code: error.code ?? null, message: error.message }
})

scenario('unknown_model', () => expectFailure('nobody'))

scenario('bad_parameter', async () => {
  try {
    await chat('echo', { temperature: 9 }).invoke('hello')
  } catch (error) {
    return { status: error.status, param: error.param, type: error.type }
  }
})

// --- leaving

scenario('abandon', async () => {
  const key = newKey()
  const pieces = []
  const leave = new AbortController()
  try {
    for await (const chunk of await chat('stall').stream(key, { signal: leave.signal })) {
      if (chunk.content) {
        pieces.push(chunk.content)
        leave.abort()
      }
    }
  } catch (error) {
    if (!leave.signal.aborted) throw error
  }
  return { pieces, cancelled: await cancelled(key), runs: await runs(key) }
})

scenario('abandon_by_cancel', async () => {
  const key = newKey()
  for await (const chunk of await chat('stall').stream(key)) if (chunk.content) break
  return { cancelled: await cancelled(key) }
})

scenario('too_late', async () => {
  const key = newKey()
  try {
    await chat('stuck', { timeout: 2000 }).invoke(key)
  } catch (error) {
    return { error: error.name, cancelled: await cancelled(key), runs: await runs(key) }
  }
})

await main()
