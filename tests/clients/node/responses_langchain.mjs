// LangChain for JavaScript, `@langchain/openai` on the Responses API.

import { randomUUID } from 'node:crypto'

import { HumanMessage, SystemMessage, ToolMessage } from '@langchain/core/messages'
import { ChatOpenAI, customTool } from '@langchain/openai'
import { z } from 'zod'

import {
  API_KEY,
  BASE_URL,
  WEATHER_TOOL,
  Weather,
  cancelled,
  leaks,
  main,
  newKey,
  plainly,
  release,
  runs,
  scenario,
} from './driving.mjs'

// Retries are off, so that a failure is seen as the server sent it; one scenario turns them on.
const chat = (model, options = {}) =>
  new ChatOpenAI({
    model,
    apiKey: API_KEY,
    timeout: 20_000,
    maxRetries: 0,
    useResponsesApi: true,
    configuration: { baseURL: BASE_URL },
    ...options,
  })
const unstored = { zdrEnabled: true } // sends store: false

async function collect(stream) {
  let whole
  const pieces = []
  for await (const chunk of stream) {
    if (chunk.text) pieces.push(chunk.text)
    whole = whole ? whole.concat(chunk) : chunk
  }
  return { pieces, whole }
}

const finish = (message) => message.response_metadata.status
const blocks = (message, type) => message.content.filter((block) => block.type === type)
const texts = (message) => blocks(message, 'text').map(({ text }) => text)
const summaries = (message) =>
  (message.additional_kwargs.reasoning?.summary ?? []).map(({ text }) => text).join('')
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

/** Make a request that the server must refuse. */
async function refused(options) {
  try {
    await chat('echo', options).invoke('hello')
  } catch (error) {
    return { status: error.status, code: error.code, param: error.param }
  }
}

// --- answers

scenario('plain', async () => {
  const message = await chat('echo').invoke('hello')
  return { text: message.text, finish: finish(message) }
})

scenario('whole', async () => ({ text: (await chat('stream').invoke('hello')).text }))

scenario('streamed', async () => {
  const { pieces, whole } = await collect(await chat('stream').stream('hello'))
  return { pieces, finish: [finish(whole)] }
})

async function piecesOf(model) {
  const key = newKey()
  const pieces = []
  for await (const chunk of await model.stream(key)) {
    if (chunk.text) {
      pieces.push(chunk.text)
      await release(key)
    }
  }
  return { pieces, runs: await runs(key) }
}

scenario('live', () => piecesOf(chat('slow')))
scenario('background_streamed', () => piecesOf(chat('slow', { modelKwargs: { background: true } })))

scenario('quiet', async () => ({
  text: (await collect(await chat('quiet').stream('hello'))).pieces.join(''),
}))

scenario('unstored', async () => {
  const message = await chat('stream', unstored).invoke('hello')
  const { pieces, whole } = await collect(await chat('stream', unstored).stream('hello'))
  const kept = []
  for (const { response_metadata: said } of [message, whole]) {
    kept.push((await plainly(`/responses/${said.id}`)).status !== 404)
  }
  return { text: message.text, pieces, kept }
})

scenario('reasoning', async () => {
  const message = await chat('reason').invoke('hello')
  return { reasoning: summaries(message), text: message.text }
})

scenario('reasoning_streamed', async () => {
  const { pieces, whole } = await collect(await chat('reason').stream('hello'))
  return { reasoning: summaries(whole), text: pieces.join('') }
})

scenario('refusal', async () => {
  const message = await chat('refuse').invoke('hello')
  return { refusal: message.additional_kwargs.refusal, text: message.text }
})

scenario('refusal_streamed', async () => {
  const { pieces, whole } = await collect(await chat('refuse').stream('hello'))
  return { refusal: whole.additional_kwargs.refusal, text: pieces.join('') }
})

const citations = (message) =>
  blocks(message, 'text')
    .flatMap(({ annotations }) => annotations ?? [])
    .map((a) => [a.url, a.title, a.startIndex, a.endIndex])

scenario('sources', async () => {
  const message = await chat('cite').invoke('hello')
  return { text: message.text, sources: citations(message) }
})

scenario('sources_streamed', async () => {
  const { pieces, whole } = await collect(await chat('cite').stream('hello'))
  return { text: pieces.join(''), sources: citations(whole) }
})

scenario('usage', async () => tokens(await chat('usage').invoke('hello')))
scenario('usage_streamed', async () => tokens((await collect(await chat('usage').stream('hello'))).whole))

const cutOff = (message) => ({
  text: message.text,
  finish: finish(message),
  reason: message.response_metadata.incomplete_details?.reason ?? null,
})
scenario('length', async () => cutOff(await chat('length').invoke('hello')))
scenario('length_streamed', async () => cutOff((await collect(await chat('length').stream('hello'))).whole))

const CityWeather = z.object({ city: z.string(), degrees: z.number() })

scenario('structured', () => chat('json').withStructuredOutput(CityWeather).invoke('Weather?'))

scenario('structured_streamed', async () => {
  let last
  const answers = await chat('json').withStructuredOutput(CityWeather).stream('Weather?')
  for await (const answer of answers) last = answer
  return last
})

scenario('parameters', async () => {
  const message = await chat('params', { temperature: 0.5, maxTokens: 50 }).invoke([
    new SystemMessage('Be brief.'),
    new HumanMessage({
      content: [
        { type: 'text', text: 'What is this?' },
        { type: 'image_url', image_url: { url: 'data:image/png;base64,cG5n' } },
      ],
    }),
  ])
  const { params, messages } = JSON.parse(message.text)
  return {
    params: { temperature: params.temperature, max_output_tokens: params.max_output_tokens },
    messages: messages.map(({ role }) => role),
    parts: messages.at(-1).content.map(({ type }) => type),
  }
})

scenario('extras', async () => {
  const options = { user: 'ada', modelKwargs: { metadata: { team: 'red' }, top_k: 3 } }
  const { extra, user, metadata } = JSON.parse((await chat('params', options).invoke('hello')).text)
  return { extra, user, metadata }
})

scenario('echoed', async () => {
  const message = await chat('echo', { modelKwargs: { metadata: { team: 'red' } } }).invoke('hello')
  const { model, metadata } = message.response_metadata
  return { model, metadata }
})

// --- tools

const wholeTurn = (bound, messages, options) => bound.invoke(messages, options)
const streamedTurn = async (bound, messages, options) => {
  return (await collect(await bound.stream(messages, options))).whole
}

/** Call tools until there are no more calls; `following` says what the next request sends. */
async function converse(model, turn, following = byItems, settings = {}) {
  const weather = new Weather()
  const bound = chat(model, settings).bindTools([WEATHER_TOOL])
  const seen = { executed: weather.executed, texts: [], finish: [] }
  let messages = [new HumanMessage(newKey())]
  let options = {}
  for (let round = 0; round < 3; round++) {
    const message = await turn(bound, messages, options)
    seen.finish.push(finish(message))
    seen.texts.push(...texts(message))
    if (message.invalid_tool_calls?.length) throw new Error(JSON.stringify(message.invalid_tool_calls))
    if (!message.tool_calls.length) break
    const answers = message.tool_calls.map(({ name, args, id }) => {
      if (name !== 'get_weather') throw new Error(name)
      return new ToolMessage({ content: weather.call(args), tool_call_id: id })
    })
    ;({ messages, options } = following(messages, message, answers))
  }
  return seen
}

const byItems = (messages, message, added) => ({ messages: [...messages, message, ...added], options: {} })
const onlyNew = (messages, message, added) => ({ messages: added, options: {} })
const byPreviousId = (messages, message, added) => ({
  messages: added,
  options: { previous_response_id: message.response_metadata.id },
})

for (const [name, model, turn, following] of [
  ['client_tool', 'client-tool', wholeTurn],
  ['client_tool_streamed', 'client-tool', streamedTurn],
  ['client_tool_by_previous_id', 'client-tool', streamedTurn, byPreviousId],
  ['two_tools', 'two-tools', wholeTurn, byPreviousId],
  ['two_tools_streamed', 'two-tools', streamedTurn],
  ['mixed_tools', 'mixed', wholeTurn],
  ['mixed_tools_streamed', 'mixed', streamedTurn, byPreviousId],
]) {
  scenario(name, () => converse(model, turn, following))
}

async function inConversation() {
  const { body } = await plainly('/conversations', {})
  return { modelKwargs: { conversation: body.id } }
}

scenario('client_tool_by_conversation', async () =>
  converse('client-tool', streamedTurn, onlyNew, await inConversation()),
)

for (const [name, turn] of [
  ['custom_tool', wholeTurn],
  ['custom_tool_streamed', streamedTurn],
]) {
  scenario(name, async () => {
    const inputs = []
    const run_code = customTool(
      async (input) => {
        inputs.push(input)
        return '42'
      },
      { name: 'run_code', description: 'Runs Python', format: { type: 'text' } },
    )
    const bound = chat('custom-tool').bindTools([run_code])
    const first = await turn(bound, [new HumanMessage('hello')])
    const [call] = first.tool_calls
    // Without the mark it would be sent as the answer to a function.
    const content = (await run_code.invoke(call)).content
    const answer = new ToolMessage({ content, tool_call_id: call.id, additional_kwargs: { customTool: true } })
    const last = await turn(bound, [new HumanMessage('hello'), first, answer])
    return { name: call.name, input: inputs.join(), text: last.text }
  })
}

for (const [name, turn] of [
  ['server_tool', wholeTurn],
  ['server_tool_streamed', streamedTurn],
]) {
  scenario(name, async () => {
    const message = await turn(chat('server-tool').bindTools([WEATHER_TOOL]), 'hello')
    const calls = (message.additional_kwargs.tool_outputs ?? []).filter(({ type }) => type === 'mcp_call')
    const ran = calls.map((call) => [call.name, JSON.parse(call.arguments), call.output])
    return { executed: message.tool_calls, ran, texts: texts(message), finish: finish(message) }
  })
}

scenario('server_tool_failed', async () => {
  const message = await streamedTurn(chat('broken-tool'), 'hello')
  const [call] = message.additional_kwargs.tool_outputs
  return { error: call.error.content[0].text, text: message.text }
})

// --- several turns

/** Ask an agent that thinks, looks and answers, then one that tells all it heard. */
async function twoTurns(following, options = {}) {
  const question = [new HumanMessage('one')]
  const first = await streamedTurn(chat('thorough', options), question)
  const { messages, options: more } = following(question, first, [new HumanMessage('two')])
  const last = await chat('recall', options).invoke(messages, more)
  return { heard: last.text.split('\n') }
}

scenario('turns_by_items', () => twoTurns(byItems))
scenario('turns_by_items_unstored', () => twoTurns(byItems, unstored))
scenario('turns_by_previous_id', () => twoTurns(byPreviousId))
scenario('turns_by_conversation', async () => twoTurns(onlyNew, await inConversation()))

scenario('repeated', async () => {
  const key = newKey()
  const configuration = { baseURL: BASE_URL, defaultHeaders: { 'Idempotency-Key': randomUUID() } }
  const model = chat('counted', { configuration })
  const [first, second] = [await model.invoke(key), await model.invoke(key)]
  try {
    await model.invoke(`${key} but another`)
  } catch (error) {
    const same = first.response_metadata.id === second.response_metadata.id
    return { same, texts: [first.text, second.text], other: error.status }
  }
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
scenario('fail_unstored', () => expectFailure('fail-mid', unstored))

scenario('retries', async () => {
  const { runs } = await expectFailure('fail-before', { maxRetries: 1 })
  return { runs }
})

async function brokenStream(model, options) {
  const key = newKey()
  const pieces = []
  try {
    for await (const chunk of await chat(model, options).stream(key)) {
      if (chunk.text) {
        pieces.push(chunk.text)
        await release(key)
      }
    }
  } catch (error) {
    const { message, code } = error
    return { pieces, error: error.constructor.name, code, leaks: leaks(error), runs: await runs(key), message }
  }
  return { pieces }
}

for (const [name, model, options] of [
  ['fail_mid_streamed', 'fail-mid'],
  ['fail_late_streamed', 'fail-late'],
  ['fail_quiet_streamed', 'fail-quiet'],
  ['fail_unstored_streamed', 'fail-late', unstored],
]) {
  scenario(name, async () => {
    const { message, ...seen } = await brokenStream(model, options)
    return seen
  })
}

scenario('give_up_streamed', () => brokenStream('give-up'))

scenario('unknown_model', async () => {
  const key = newKey()
  try {
    await chat('nobody').invoke(key)
  } catch (error) {
    return { status: error.status, code: error.code, param: error.param ?? null, runs: await runs(key) }
  }
})

const conversation = 'conv_unknown'
const previous_response_id = 'resp_unknown'
scenario('bad_parameter', () => refused({ temperature: 9 }))
scenario('unknown_previous', () => refused({ modelKwargs: { previous_response_id } }))
scenario('unknown_conversation', () => refused({ modelKwargs: { conversation } }))
scenario('two_contexts', () => refused({ modelKwargs: { conversation, previous_response_id } }))

// --- leaving

async function leave(options) {
  const key = newKey()
  const pieces = []
  for await (const chunk of await chat('stall', options).stream(key)) {
    if (chunk.text) {
      pieces.push(chunk.text)
      break
    }
  }
  return { pieces, cancelled: await cancelled(key), runs: await runs(key) }
}

scenario('abandon', () => leave())
scenario('abandon_unstored', () => leave(unstored))

scenario('too_late', async () => {
  const key = newKey()
  try {
    await chat('stuck', { timeout: 1000 }).invoke(key)
  } catch (error) {
    return { error: error.name, cancelled: await cancelled(key), runs: await runs(key) }
  }
})

await main()
