// Vercel's AI SDK with what `@ai-sdk/openai` uses unless told otherwise: the Responses API.

import { randomUUID } from 'node:crypto'

import { createOpenAI } from '@ai-sdk/openai'
import { APICallError, Output, generateText, jsonSchema, stepCountIs, streamText, tool } from 'ai'
import { z } from 'zod'

import {
  API_KEY,
  BASE_URL,
  WEATHER_PARAMETERS,
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

/** Bodies of the requests that were sent. */
const sent = []
const openai = createOpenAI({
  baseURL: BASE_URL,
  apiKey: API_KEY,
  fetch: (url, options) => {
    sent.push(JSON.parse(options.body))
    return fetch(url, options)
  },
})
const said = (options) => ({ providerOptions: { openai: options } })
const unstored = said({ store: false })

// Retries are off, so that a failure is seen as the server sent it; one scenario turns them on.
const ask = (id, options = {}, prompt = 'hello') =>
  generateText({ model: openai(id), maxRetries: 0, ...(options.messages ? {} : { prompt }), ...options })
const askStream = (id, options = {}, prompt = 'hello') =>
  streamText({
    model: openai(id),
    maxRetries: 0,
    onError: () => {},
    ...(options.messages ? {} : { prompt }),
    ...options,
  })

/** Every part of the full stream, put in order by kind. */
async function collect(result) {
  const seen = { pieces: [], reasoning: [], sources: [], calls: [], results: [], finish: [], raw: [], errors: [] }
  for await (const part of result.fullStream) {
    if (part.type === 'text-delta') seen.pieces.push(part.text)
    else if (part.type === 'reasoning-delta') seen.reasoning.push(part.text)
    else if (part.type === 'source') seen.sources.push(part)
    else if (part.type === 'finish-step') {
      seen.finish.push(part.finishReason)
      seen.raw.push(part.rawFinishReason)
    } else if (part.type === 'error') seen.errors.push(part.error)
    else if (part.type === 'tool-call') seen.calls.push(part)
    else if (part.type === 'tool-result') seen.results.push(part)
    else if (part.type === 'tool-error') throw new Error(JSON.stringify(part))
  }
  return seen
}

const tokens = (usage) => ({
  input: usage.inputTokens,
  output: usage.outputTokens,
  total: usage.totalTokens,
  cached: usage.inputTokenDetails.cacheReadTokens,
  reasoning: usage.outputTokenDetails.reasoningTokens,
})

const citations = (sources) => sources.map(({ url, title }) => [url, title])
const reasoningOf = (parts) => parts.map(({ text }) => text).join('')

/** How a failed request looks: the error's kind, and what the server said. */
async function failure(error, key) {
  const last = error.lastError ?? error // RetryError wraps the last of its attempts
  if (!APICallError.isInstance(last)) throw error
  return {
    error: last.name,
    status: last.statusCode,
    code: last.data?.error?.code ?? null,
    request_id: Boolean(last.responseHeaders?.['x-request-id']),
    leaks: leaks(last),
    runs: await runs(key),
  }
}

async function expectFailure(id, options = {}) {
  const key = newKey()
  try {
    return { answer: (await ask(id, options, key)).text }
  } catch (error) {
    return failure(error, key)
  }
}

/** Make a request that the server must refuse. */
async function refused(options) {
  try {
    await ask('echo', options)
  } catch (error) {
    if (!APICallError.isInstance(error)) throw error
    const { code, param } = error.data.error
    return { status: error.statusCode, code, param }
  }
}

// --- answers

scenario('plain', async () => {
  const { text, finishReason } = await ask('echo')
  return { text, finish: finishReason }
})

scenario('whole', async () => ({ text: (await ask('stream')).text }))

scenario('streamed', async () => {
  const { pieces, finish } = await collect(askStream('stream'))
  return { pieces, finish }
})

scenario('live', async () => {
  const key = newKey()
  const pieces = []
  for await (const piece of askStream('slow', {}, key).textStream) {
    pieces.push(piece)
    await release(key)
  }
  return { pieces, runs: await runs(key) }
})

scenario('quiet', async () => ({ text: (await collect(askStream('quiet'))).pieces.join('') }))

scenario('unstored', async () => {
  const { text, response } = await ask('stream', unstored)
  const result = askStream('stream', unstored)
  const { pieces } = await collect(result)
  const kept = []
  for (const { id } of [response, await result.response]) {
    kept.push((await plainly(`/responses/${id}`)).status !== 404)
  }
  return { text, pieces, kept }
})

scenario('reasoning', async () => {
  const { reasoning, text } = await ask('reason')
  return { reasoning: reasoningOf(reasoning), text }
})

scenario('reasoning_streamed', async () => {
  const { reasoning, pieces } = await collect(askStream('reason'))
  return { reasoning: reasoning.join(''), text: pieces.join('') }
})

scenario('refusal', async () => ({ text: (await ask('refuse')).text }))
scenario('refusal_streamed', async () => ({ text: (await collect(askStream('refuse'))).pieces.join('') }))

scenario('sources', async () => {
  const { text, sources } = await ask('cite')
  return { text, sources: citations(sources) }
})

scenario('sources_streamed', async () => {
  const { pieces, sources } = await collect(askStream('cite'))
  return { text: pieces.join(''), sources: citations(sources) }
})

scenario('usage', async () => tokens((await ask('usage')).usage))
scenario('usage_streamed', async () => {
  const result = askStream('usage')
  await result.consumeStream()
  return tokens(await result.usage)
})

scenario('length', async () => {
  const { text, finishReason, rawFinishReason } = await ask('length')
  return { text, finish: finishReason, reason: rawFinishReason }
})

scenario('length_streamed', async () => {
  const { pieces, finish, raw } = await collect(askStream('length'))
  return { text: pieces.join(''), finish: finish.join(), reason: raw.join() }
})

const output = Output.object({ schema: z.object({ city: z.string(), degrees: z.number() }) })

scenario('structured', async () => (await ask('json', { output })).output)

scenario('structured_streamed', async () => {
  const result = askStream('json', { output })
  await result.consumeStream()
  return await result.output
})

scenario('parameters', async () => {
  const content = [
    { type: 'text', text: 'What is this?' },
    { type: 'image', image: Buffer.from('png'), mediaType: 'image/png' },
  ]
  const options = { system: 'Be brief.', temperature: 0.5, maxOutputTokens: 50 }
  const { text } = await ask('params', { messages: [{ role: 'user', content }], ...options })
  const { params, messages } = JSON.parse(text)
  return {
    params: { temperature: params.temperature, max_output_tokens: params.max_output_tokens },
    messages: messages.map(({ role }) => role),
    parts: messages.at(-1).content.map(({ type }) => type),
  }
})

scenario('extras', async () => {
  const { text } = await ask('params', said({ user: 'ada', metadata: { team: 'red' }, top_k: 3 }))
  const { extra, user, metadata } = JSON.parse(text)
  return { extra, user, metadata }
})

// --- tools: the SDK runs them and asks again

function toolOptions(weather) {
  const get_weather = tool({
    description: 'Weather of a city',
    inputSchema: jsonSchema(WEATHER_PARAMETERS),
    execute: weather.call,
  })
  return { tools: { get_weather }, stopWhen: stepCountIs(3) }
}

/** The text of each text part: a message of the response is a part here. */
const textsOf = (steps) =>
  steps.flatMap((step) => step.content.filter(({ type }) => type === 'text').map(({ text }) => text))

async function converse(id, options = {}) {
  const weather = new Weather()
  const { steps } = await ask(id, { ...toolOptions(weather), ...options }, newKey())
  return {
    executed: weather.executed,
    texts: textsOf(steps),
    finish: steps.map((step) => step.finishReason),
  }
}

async function converseStreamed(id, options = {}) {
  const weather = new Weather()
  const result = askStream(id, { ...toolOptions(weather), ...options }, newKey())
  const { errors, finish } = await collect(result)
  if (errors.length) throw errors[0]
  return { executed: weather.executed, texts: textsOf(await result.steps), finish }
}

const newConversation = async () => (await plainly('/conversations', {})).body.id

scenario('client_tool', () => converse('client-tool', unstored))
scenario('client_tool_streamed', () => converseStreamed('client-tool'))
scenario('client_tool_by_conversation', async () =>
  converseStreamed('client-tool', said({ conversation: await newConversation() })),
)
scenario('client_tool_by_previous_id', async () => {
  // By hand, for its loop sends all of its messages.
  const weather = new Weather()
  const tools = { get_weather: tool({ inputSchema: jsonSchema(WEATHER_PARAMETERS) }) }
  const first = await ask('client-tool', { tools }, newKey())
  const [{ toolCallId, toolName, input }] = first.toolCalls
  const output = { type: 'text', value: weather.call(input) }
  const messages = [{ role: 'tool', content: [{ type: 'tool-result', toolCallId, toolName, output }] }]
  const previousResponseId = first.providerMetadata.openai.responseId
  const second = await ask('client-tool', { tools, messages, ...said({ previousResponseId }) })
  const steps = [...first.steps, ...second.steps]
  const finish = steps.map((step) => step.finishReason)
  return { executed: weather.executed, texts: textsOf(steps), finish }
})

scenario('two_tools', () => converse('two-tools'))
scenario('two_tools_streamed', () => converseStreamed('two-tools', unstored))
scenario('mixed_tools', () => converse('mixed'))
scenario('mixed_tools_streamed', () => converseStreamed('mixed', unstored))

function codeTool() {
  const inputs = []
  const run_code = openai.tools.customTool({ name: 'run_code', description: 'Runs Python' })
  run_code.execute = (input) => {
    inputs.push(input)
    return '42'
  }
  return { inputs, options: { tools: { run_code }, stopWhen: stepCountIs(3) } }
}

scenario('custom_tool', async () => {
  const { inputs, options } = codeTool()
  const { steps, text } = await ask('custom-tool', options)
  return { name: steps[0].toolCalls[0].toolName, input: inputs.join(), text }
})

scenario('custom_tool_streamed', async () => {
  const { inputs, options } = codeTool()
  const result = askStream('custom-tool', options)
  const { calls } = await collect(result)
  return { name: calls[0].toolName, input: inputs.join(), text: await result.text }
})

/** What the agent's own tools did: calls that the provider executed, which end no step. */
function see(weather, steps) {
  const [{ content, finishReason }, ...more] = steps
  const calls = content.filter(({ type }) => type === 'tool-call')
  const results = content.filter(({ type }) => type === 'tool-result')
  const executedThere = calls.every(({ providerExecuted }) => providerExecuted)
  if (more.length || !executedThere) throw new Error(JSON.stringify(steps))
  const ran = calls.map(({ toolName, input }, place) => [toolName, input, results[place].output.output])
  return { executed: weather.executed, ran, texts: textsOf(steps), finish: finishReason }
}

scenario('server_tool', async () => {
  const weather = new Weather()
  const { steps } = await ask('server-tool', toolOptions(weather))
  return see(weather, steps)
})

scenario('server_tool_streamed', async () => {
  const weather = new Weather()
  const result = askStream('server-tool', toolOptions(weather))
  const { errors } = await collect(result)
  if (errors.length) throw errors[0]
  return see(weather, await result.steps)
})

scenario('server_tool_failed', async () => {
  const result = askStream('broken-tool')
  const { results } = await collect(result)
  return { error: results[0].output.error.content[0].text, text: await result.text }
})

// --- several turns

/** What the last request sent: whole items, or only their ids. */
const lastReferences = () => sent.at(-1).input.filter(({ type }) => type === 'item_reference').length

/** Ask an agent that thinks, looks and answers, then one that tells all it heard. */
async function twoTurns(options) {
  const messages = [{ role: 'user', content: 'one' }]
  const result = askStream('thorough', { messages, ...options })
  await result.consumeStream()
  messages.push(...(await result.response).messages, { role: 'user', content: 'two' })
  const { text } = await ask('recall', { messages, ...options })
  return { heard: text.split('\n') }
}

scenario('turns_by_items_unstored', async () => {
  const seen = await twoTurns(unstored)
  if (lastReferences() !== 0) throw new Error(JSON.stringify(sent.at(-1)))
  return seen
})

scenario('turns_by_reference', async () => {
  const seen = await twoTurns()
  if (lastReferences() !== 4) throw new Error(JSON.stringify(sent.at(-1)))
  return seen
})

scenario('turns_by_previous_id', async () => {
  const first = await ask('thorough', {}, 'one')
  const previousResponseId = first.providerMetadata.openai.responseId
  const { text } = await ask('recall', said({ previousResponseId }), 'two')
  return { heard: text.split('\n') }
})

scenario('turns_by_conversation', async () => {
  const options = said({ conversation: await newConversation() })
  await ask('thorough', options, 'one')
  return { heard: (await ask('recall', options, 'two')).text.split('\n') }
})

scenario('repeated', async () => {
  const key = newKey()
  const options = { headers: { 'Idempotency-Key': randomUUID() } }
  const [first, second] = [await ask('counted', options, key), await ask('counted', options, key)]
  try {
    await ask('counted', options, `${key} but another`)
  } catch (error) {
    if (!APICallError.isInstance(error)) throw error
    const same = first.response.id === second.response.id
    return { same, texts: [first.text, second.text], other: error.statusCode }
  }
})

// --- failures

scenario('fail_before', () => expectFailure('fail-before'))

scenario('fail_before_streamed', async () => {
  const key = newKey()
  const { errors } = await collect(askStream('fail-before', {}, key))
  return failure(errors[0], key)
})

scenario('fail_status', () => expectFailure('fail-status'))
scenario('fail_mid', () => expectFailure('fail-mid'))
scenario('fail_unstored', () => expectFailure('fail-mid', unstored))

scenario('retries', async () => {
  const { runs } = await expectFailure('fail-before', { maxRetries: 1 })
  return { runs }
})

async function brokenStream(id, options) {
  const key = newKey()
  const onChunk = ({ chunk }) => chunk.type === 'text-delta' && release(key)
  const { pieces, errors } = await collect(askStream(id, { onChunk, ...options }, key))
  const [error, ...more] = errors
  if (!error || more.length) throw new Error(JSON.stringify(errors))
  const { name = null, code = error.data.error.code, message } = error
  return { pieces, error: name, code, leaks: leaks(error), runs: await runs(key), message }
}

for (const [name, id, options] of [
  ['fail_mid_streamed', 'fail-mid'],
  ['fail_late_streamed', 'fail-late'],
  ['fail_quiet_streamed', 'fail-quiet'],
  ['fail_unstored_streamed', 'fail-late', unstored],
]) {
  scenario(name, async () => {
    const { message, ...seen } = await brokenStream(id, options)
    return seen
  })
}

scenario('give_up_streamed', () => brokenStream('give-up'))

scenario('unknown_model', async () => {
  const key = newKey()
  try {
    await ask('nobody', {}, key)
  } catch (error) {
    const { code, param } = error.data.error
    return { status: error.statusCode, code, param, runs: await runs(key) }
  }
})

const conversation = 'conv_unknown'
const previousResponseId = 'resp_unknown'
scenario('bad_parameter', () => refused({ temperature: 9 }))
scenario('unknown_previous', () => refused(said({ previousResponseId })))
scenario('unknown_conversation', () => refused(said({ conversation })))
scenario('two_contexts', () => refused(said({ conversation, previousResponseId })))
scenario('unknown_reference', () => {
  const part = { type: 'text', text: 'hi', providerOptions: { openai: { itemId: 'msg_unknown' } } }
  const messages = [
    { role: 'assistant', content: [part] },
    { role: 'user', content: 'hello' },
  ]
  return refused({ messages })
})

// --- leaving

async function leave(options) {
  const key = newKey()
  const pieces = []
  const leave = new AbortController()
  for await (const piece of askStream('stall', { abortSignal: leave.signal, ...options }, key).textStream) {
    pieces.push(piece)
    leave.abort()
  }
  return { pieces, cancelled: await cancelled(key), runs: await runs(key) }
}

scenario('abandon', () => leave())
scenario('abandon_unstored', () => leave(unstored))

scenario('too_late', async () => {
  const key = newKey()
  try {
    await ask('stuck', { abortSignal: AbortSignal.timeout(1000) }, key)
  } catch (error) {
    return { error: error.name, cancelled: await cancelled(key), runs: await runs(key) }
  }
})

scenario('headers', async () => {
  const { response, text } = await ask('echo')
  return {
    x_request_id: Boolean(response.headers['x-request-id']),
    version: response.headers['openai-version'],
    milliseconds: /^\d+$/.test(response.headers['openai-processing-ms']),
    text,
  }
})

await main()
