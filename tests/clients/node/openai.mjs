// The official `openai` package for JavaScript.

import OpenAI, { APIConnectionTimeoutError, APIError, BadRequestError, NotFoundError } from 'openai'
import { zodResponseFormat } from 'openai/helpers/zod'
import { z } from 'zod'

import {
  BASE_URL,
  WEATHER_PARAMETERS,
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

const client = new OpenAI({ baseURL: BASE_URL, apiKey: 'test', timeout: 20_000 })
const { completions } = client.chat
const TOOLS = [WEATHER_TOOL]
const CityWeather = z.object({ city: z.string(), degrees: z.number() })

const says = (text) => [{ role: 'user', content: text }]
const ask = (model, options = {}, text = 'hello') =>
  completions.create({ model, messages: says(text), ...options })

/** Read a stream the way most code does, without looking before it indexes. */
async function collect(stream) {
  const seen = { pieces: [], roles: [], reasoning: [], refusal: [], finish: [] }
  for await (const chunk of stream) {
    const { delta, finish_reason } = chunk.choices[0]
    if (delta.content) seen.pieces.push(delta.content)
    if (delta.role) seen.roles.push(delta.role)
    if (delta.reasoning_content) seen.reasoning.push(delta.reasoning_content)
    if (delta.refusal) seen.refusal.push(delta.refusal)
    if (finish_reason) seen.finish.push(finish_reason)
  }
  return seen
}

const citations = (annotations) =>
  annotations.map(({ url_citation: c }) => [c.url, c.title, c.start_index, c.end_index])

const tokens = (usage) => ({
  input: usage.prompt_tokens,
  output: usage.completion_tokens,
  total: usage.total_tokens,
  cached: usage.prompt_tokens_details.cached_tokens,
  reasoning: usage.completion_tokens_details.reasoning_tokens,
})

async function expectFailure(model, options = {}) {
  const key = newKey()
  try {
    return { answer: await ask(model, options, key) }
  } catch (error) {
    if (!(error instanceof APIError)) throw error
    return {
      error: error.constructor.name,
      status: error.status ?? null,
      code: error.code ?? null,
      request_id: Boolean(error.requestID),
      leaks: leaks(error),
      runs: await runs(key),
    }
  }
}

// --- answers

scenario('plain', async () => {
  const { message, finish_reason } = (await ask('echo')).choices[0]
  return { text: message.content, role: message.role, finish: finish_reason }
})

scenario('streamed', async () => {
  const { pieces, roles, finish } = await collect(await ask('stream', { stream: true }))
  return { pieces, roles, finish }
})

scenario('whole', async () => ({ text: (await ask('stream')).choices[0].message.content }))

scenario('stream_helper', async () => {
  const stream = completions.stream({ model: 'stream', messages: says('hello') })
  const deltas = []
  const done = []
  stream.on('content.delta', ({ delta }) => deltas.push(delta))
  stream.on('content.done', ({ content }) => done.push(content))
  const { message, finish_reason } = (await stream.finalChatCompletion()).choices[0]
  return { text: message.content, role: message.role, finish: finish_reason, deltas, done }
})

scenario('live', async () => {
  const key = newKey()
  const pieces = []
  for await (const chunk of await ask('slow', { stream: true }, key)) {
    if (chunk.choices[0].delta.content) {
      pieces.push(chunk.choices[0].delta.content)
      await release(key)
    }
  }
  return { pieces, runs: await runs(key) }
})

scenario('quiet', async () => ({ text: (await collect(await ask('quiet', { stream: true }))).pieces.join('') }))

scenario('reasoning', async () => {
  const { message } = (await ask('reason')).choices[0]
  return { reasoning: message.reasoning_content, text: message.content }
})

scenario('reasoning_streamed', async () => {
  const { reasoning, pieces } = await collect(await ask('reason', { stream: true }))
  return { reasoning: reasoning.join(''), text: pieces.join('') }
})

scenario('refusal', async () => {
  const { message } = (await ask('refuse')).choices[0]
  return { refusal: message.refusal, text: message.content ?? '' }
})

scenario('refusal_streamed', async () => {
  const { refusal, pieces } = await collect(await ask('refuse', { stream: true }))
  return { refusal: refusal.join(''), text: pieces.join('') }
})

scenario('sources', async () => {
  const { message } = (await ask('cite')).choices[0]
  return { text: message.content, sources: citations(message.annotations) }
})

scenario('sources_streamed', async () => {
  let text = ''
  const found = []
  for await (const chunk of await ask('cite', { stream: true })) {
    text += chunk.choices[0].delta.content ?? ''
    found.push(...(chunk.choices[0].delta.annotations ?? []))
  }
  return { text, sources: citations(found) }
})

scenario('usage', async () => tokens((await ask('usage')).usage))

scenario('usage_streamed', async () => {
  const chunks = []
  for await (const chunk of await ask('usage', { stream: true, stream_options: { include_usage: true } })) {
    chunks.push(chunk)
  }
  const last = chunks.pop()
  if (chunks.some((chunk) => chunk.usage)) throw new Error('usage before the last chunk')
  return tokens(last.usage)
})

scenario('length', async () => {
  const { message, finish_reason } = (await ask('length')).choices[0]
  return { text: message.content, finish: finish_reason }
})

const response_format = zodResponseFormat(CityWeather, 'city_weather')

scenario('structured', async () => {
  const answer = await completions.parse({ model: 'json', messages: says('Weather?'), response_format })
  return answer.choices[0].message.parsed
})

scenario('structured_streamed', async () => {
  const stream = completions.stream({ model: 'json', messages: says('Weather?'), response_format })
  return (await stream.finalChatCompletion()).choices[0].message.parsed
})

scenario('choices', async () => ({
  texts: (await ask('echo', { n: 2 })).choices.map((choice) => choice.message.content),
}))

scenario('choices_streamed', async () => {
  const final = await completions.stream({ model: 'echo', messages: says('hello'), n: 2 }).finalChatCompletion()
  return { texts: final.choices.map((choice) => choice.message.content) }
})

scenario('stop', async () => {
  const { message, finish_reason } = (await ask('stream', { stop: ['llo'] })).choices[0]
  return { text: message.content, finish: finish_reason }
})

scenario('stop_streamed', async () => {
  const { pieces, finish } = await collect(await ask('stream', { stop: 'llo', stream: true }))
  return { text: pieces.join(''), finish }
})

const withPicture = [
  { role: 'system', content: 'Be brief.' },
  {
    role: 'user',
    content: [
      { type: 'text', text: 'What is this?' },
      { type: 'image_url', image_url: { url: `data:image/png;base64,${btoa('png')}` } },
    ],
  },
]

scenario('parameters', async () => {
  const answer = await completions.create({
    model: 'params',
    messages: withPicture,
    temperature: 0.5,
    max_tokens: 50,
    seed: 7,
  })
  const { params, messages } = JSON.parse(answer.choices[0].message.content)
  if (JSON.stringify(messages) !== JSON.stringify(withPicture)) throw new Error(JSON.stringify(messages))
  return { params, messages: messages.map(({ role }) => role) }
})

scenario('extras', async () => {
  const answer = await ask('params', { user: 'ada', metadata: { team: 'red' }, top_k: 3 })
  const { extra, user, metadata } = JSON.parse(answer.choices[0].message.content)
  return { extra, user, metadata }
})

scenario('legacy_functions', async () => {
  const answer = await ask('client-tool', { functions: [WEATHER_TOOL.function] }, newKey())
  const { message, finish_reason } = answer.choices[0]
  const { name, arguments: text } = message.function_call
  return { name, arguments: JSON.parse(text), finish: finish_reason }
})

// --- tools

/** Answer tool calls until there are none, as a client does by hand; `turn` makes one request. */
async function converse(model, turn) {
  const weather = new Weather()
  const messages = says(newKey())
  const texts = []
  const finish = []
  for (let round = 0; round < 3; round++) {
    const { message, finish_reason } = await turn(model, messages)
    finish.push(finish_reason)
    if (message.content) texts.push(message.content)
    if (!message.tool_calls?.length) break
    messages.push(message)
    for (const call of message.tool_calls) {
      if (call.type !== 'function' || call.function.name !== 'get_weather') throw new Error(JSON.stringify(call))
      const content = weather.call(JSON.parse(call.function.arguments))
      messages.push({ role: 'tool', tool_call_id: call.id, content })
    }
  }
  return { executed: weather.executed, texts, finish }
}

const wholeTurn = async (model, messages) =>
  (await completions.create({ model, messages, tools: TOOLS })).choices[0]
const streamedTurn = async (model, messages) =>
  (await completions.stream({ model, messages, tools: TOOLS }).finalChatCompletion()).choices[0]

for (const [name, model] of [
  ['client_tool', 'client-tool'],
  ['two_tools', 'two-tools'],
  ['server_tool', 'server-tool'],
  ['mixed_tools', 'mixed'],
]) {
  scenario(name, () => converse(model, wholeTurn))
  scenario(`${name}_streamed`, () => converse(model, streamedTurn))
}

// The client's own tool loop.
const runTools = async (stream) => {
  const weather = new Weather()
  const runner = completions.runTools({
    model: 'two-tools',
    messages: says(newKey()),
    stream,
    tools: [
      {
        type: 'function',
        function: {
          name: 'get_weather',
          parameters: WEATHER_PARAMETERS,
          parse: JSON.parse,
          function: weather.call,
        },
      },
    ],
  })
  const text = await runner.finalContent()
  return { executed: weather.executed, texts: [text] }
}
scenario('tool_runner', () => runTools(false))
scenario('tool_runner_streamed', () => runTools(true))

scenario('two_tools_by_hand', async () => {
  const calls = []
  for await (const chunk of await ask('two-tools', { tools: TOOLS, stream: true }, newKey())) {
    for (const delta of chunk.choices[0].delta.tool_calls ?? []) {
      calls[delta.index] ??= { id: delta.id, name: '', arguments: '' }
      calls[delta.index].name += delta.function.name ?? ''
      calls[delta.index].arguments += delta.function.arguments ?? ''
    }
  }
  return { calls }
})

// --- failures

scenario('fail_before', () => expectFailure('fail-before'))
scenario('fail_before_streamed', () => expectFailure('fail-before', { stream: true }))
scenario('fail_status', () => expectFailure('fail-status'))
scenario('fail_mid', () => expectFailure('fail-mid'))

scenario('retries', async () => {
  if (client.maxRetries !== 2) throw new Error('retries are on by default')
  const { runs } = await expectFailure('fail-before')
  return { runs }
})

async function brokenStream(model) {
  const key = newKey()
  const pieces = []
  const finish = []
  try {
    for await (const chunk of await ask(model, { stream: true }, key)) {
      const { delta, finish_reason } = chunk.choices[0]
      if (delta.content) {
        pieces.push(delta.content)
        await release(key)
      }
      if (finish_reason) finish.push(finish_reason)
    }
  } catch (error) {
    const { code, message } = error
    return { pieces, finish, error: error.constructor.name, code, message, runs: await runs(key) }
  }
  return { pieces, finish }
}

for (const [name, model] of [
  ['fail_mid_streamed', 'fail-mid'],
  ['fail_late_streamed', 'fail-late'],
  ['fail_quiet_streamed', 'fail-quiet'],
]) {
  scenario(name, async () => {
    const { message, ...seen } = await brokenStream(model)
    return { ...seen, leaks: message.includes('secret detail') }
  })
}

scenario('give_up_streamed', () => brokenStream('give-up'))
scenario('unknown_model', () => expectFailure('nobody'))

scenario('bad_parameter', async () => {
  try {
    await ask('echo', { temperature: 9 })
  } catch (error) {
    if (!(error instanceof BadRequestError)) throw error
    return { status: error.status, param: error.param, type: error.type }
  }
})

// --- leaving

scenario('abandon', async () => {
  const key = newKey()
  const pieces = []
  for await (const chunk of await ask('stall', { stream: true }, key)) {
    if (chunk.choices[0].delta.content) {
      pieces.push(chunk.choices[0].delta.content)
      break // leaving the loop aborts the request
    }
  }
  return { pieces, cancelled: await cancelled(key), runs: await runs(key) }
})

scenario('abandon_by_cancel', async () => {
  const key = newKey()
  const leave = new AbortController()
  const stream = await completions.create(
    { model: 'stall', messages: says(key), stream: true },
    { signal: leave.signal },
  )
  for await (const chunk of stream) if (chunk.choices[0].delta.content) leave.abort()
  return { cancelled: await cancelled(key) }
})

scenario('too_late', async () => {
  const key = newKey()
  try {
    await completions.create({ model: 'stuck', messages: says(key) }, { timeout: 2000, maxRetries: 0 })
  } catch (error) {
    if (!(error instanceof APIConnectionTimeoutError)) throw error
    return { error: error.constructor.name, cancelled: await cancelled(key), runs: await runs(key) }
  }
})

// --- the rest of the API

scenario('models', async () => {
  const listed = []
  for await (const model of client.models.list()) listed.push(model.id)
  return { listed: listed.sort() }
})

scenario('one_model', async () => {
  const { id, object } = await client.models.retrieve('echo')
  try {
    await client.models.retrieve('nobody')
  } catch (error) {
    if (!(error instanceof NotFoundError)) throw error
    return { id, object, missing: error.code }
  }
})

scenario('headers', async () => {
  const { data, response, request_id } = await ask('echo').withResponse()
  return {
    x_request_id: request_id.startsWith('req_'),
    version: response.headers.get('openai-version'),
    milliseconds: /^\d+$/.test(response.headers.get('openai-processing-ms')),
    text: data.choices[0].message.content,
  }
})

await main()
