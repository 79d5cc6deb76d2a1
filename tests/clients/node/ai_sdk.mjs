// Vercel's AI SDK with one of its two providers for Chat Completions: `openai` or `compatible`.

import { createOpenAI } from '@ai-sdk/openai'
import { createOpenAICompatible } from '@ai-sdk/openai-compatible'
import { APICallError, Output, generateText, jsonSchema, stepCountIs, streamText, tool } from 'ai'
import { z } from 'zod'

import {
  BASE_URL,
  WEATHER_PARAMETERS,
  Weather,
  cancelled,
  leaks,
  main,
  newKey,
  release,
  runs,
  scenario,
} from './driving.mjs'

const settings = { baseURL: BASE_URL, apiKey: 'test' }
const providers = {
  openai: () => createOpenAI(settings).chat,
  compatible: () =>
    createOpenAICompatible({
      ...settings,
      name: 'agentrun',
      includeUsage: true,
      supportsStructuredOutputs: true,
    }),
}
const model = providers[process.argv[3]]()

// Retries are off, so that a failure is seen as the server sent it; one scenario turns them on.
const ask = (id, options = {}, prompt = 'hello') =>
  generateText({ model: model(id), prompt, maxRetries: 0, ...options })
const askStream = (id, options = {}, prompt = 'hello') =>
  streamText({ model: model(id), prompt, maxRetries: 0, onError: () => {}, ...options })

/** Every part of the full stream, put in order by kind. */
async function collect(result) {
  const seen = { pieces: [], reasoning: [], sources: [], finish: [], errors: [], calls: [], failedCalls: [] }
  for await (const part of result.fullStream) {
    if (part.type === 'text-delta') seen.pieces.push(part.text)
    else if (part.type === 'reasoning-delta') seen.reasoning.push(part.text)
    else if (part.type === 'source') seen.sources.push(part)
    else if (part.type === 'finish-step') seen.finish.push(part.finishReason)
    else if (part.type === 'error') seen.errors.push(part.error)
    else if (part.type === 'tool-call') seen.calls.push(part)
    else if (part.type === 'tool-error') seen.failedCalls.push(part)
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

// --- answers

scenario('plain', async () => {
  const { text, finishReason } = await ask('echo')
  return { text, finish: finishReason }
})

scenario('streamed', async () => {
  const { pieces, finish } = await collect(askStream('stream'))
  return { pieces, finish }
})

scenario('whole', async () => ({ text: (await ask('stream')).text }))

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

scenario('reasoning', async () => {
  const { reasoningText, text } = await ask('reason')
  return { reasoning: reasoningText ?? null, text }
})

scenario('reasoning_streamed', async () => {
  const { reasoning, pieces } = await collect(askStream('reason'))
  return { reasoning: reasoning.join('') || null, text: pieces.join('') }
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
  const { text, finishReason } = await ask('length')
  return { text, finish: finishReason }
})

const CityWeather = z.object({ city: z.string(), degrees: z.number() })

scenario('structured', async () => {
  return (await ask('json', { output: Output.object({ schema: CityWeather }) })).output
})

scenario('structured_streamed', async () => {
  const result = askStream('json', { output: Output.object({ schema: CityWeather }) })
  await result.consumeStream()
  return await result.output
})

scenario('stop', async () => {
  const { text, finishReason } = await ask('stream', { stopSequences: ['llo'] })
  return { text, finish: finishReason }
})

scenario('stop_streamed', async () => {
  const { pieces, finish } = await collect(askStream('stream', { stopSequences: ['llo'] }))
  return { text: pieces.join(''), finish }
})

scenario('extras', async () => {
  const name = process.argv[3] === 'openai' ? 'openai' : 'agentrun'
  const options = { user: 'ada', metadata: { team: 'red' }, top_k: 3 }
  const arrived = JSON.parse((await ask('params', { providerOptions: { [name]: options } })).text)
  return { extra: arrived.extra, user: arrived.user, metadata: arrived.metadata }
})

scenario('headers', async () => {
  const { response, text } = await ask('echo')
  return {
    x_request_id: response.headers['x-request-id'].startsWith('req_'),
    version: response.headers['openai-version'],
    milliseconds: /^\d+$/.test(response.headers['openai-processing-ms']),
    text,
  }
})

scenario('parameters', async () => {
  const options = { temperature: 0.5, maxOutputTokens: 50, seed: 7, system: 'Be brief.' }
  const messages = [
    {
      role: 'user',
      content: [
        { type: 'text', text: 'What is this?' },
        { type: 'image', image: Buffer.from('png'), mediaType: 'image/png' },
      ],
    },
  ]
  const answer = await generateText({ model: model('params'), messages, maxRetries: 0, ...options })
  const arrived = JSON.parse(answer.text)
  return { params: arrived.params, messages: arrived.messages.map(({ role }) => role) }
})

// --- tools: the SDK runs them and asks again

function toolOptions(weather) {
  return {
    tools: {
      get_weather: tool({
        description: 'Weather of a city',
        inputSchema: jsonSchema(WEATHER_PARAMETERS),
        execute: weather.call,
      }),
    },
    stopWhen: stepCountIs(3),
  }
}

async function converse(id) {
  const weather = new Weather()
  const { steps } = await ask(id, toolOptions(weather), newKey())
  return {
    executed: weather.executed,
    texts: steps.map((step) => step.text).filter(Boolean),
    finish: steps.map((step) => step.finishReason),
  }
}

async function converseStreamed(id) {
  const weather = new Weather()
  const result = askStream(id, toolOptions(weather), newKey())
  const seen = await collect(result)
  if (seen.errors.length || seen.failedCalls.length) throw new Error(JSON.stringify(seen))
  if (seen.calls.length !== weather.executed.length) throw new Error(JSON.stringify(seen.calls))
  return {
    executed: weather.executed,
    texts: (await result.steps).map((step) => step.text).filter(Boolean),
    finish: seen.finish,
  }
}

for (const [name, id] of [
  ['client_tool', 'client-tool'],
  ['two_tools', 'two-tools'],
  ['server_tool', 'server-tool'],
  ['mixed_tools', 'mixed'],
]) {
  scenario(name, () => converse(id))
  scenario(`${name}_streamed`, () => converseStreamed(id))
}

// --- failures

scenario('fail_before', () => expectFailure('fail-before'))

scenario('fail_before_streamed', async () => {
  const key = newKey()
  const { errors } = await collect(askStream('fail-before', {}, key))
  return failure(errors[0], key)
})

scenario('fail_status', () => expectFailure('fail-status'))
scenario('fail_mid', () => expectFailure('fail-mid'))

scenario('retries', async () => {
  const { runs } = await expectFailure('fail-before', { maxRetries: 1 })
  return { runs }
})

async function brokenStream(id) {
  const key = newKey()
  const options = { onChunk: ({ chunk }) => chunk.type === 'text-delta' && release(key) }
  const { pieces, finish, errors } = await collect(askStream(id, options, key))
  const [error, ...more] = errors
  if (!error || more.length) throw new Error(JSON.stringify(errors))
  return { pieces, finish, error, runs: await runs(key) }
}

for (const [name, id] of [
  ['fail_mid_streamed', 'fail-mid'],
  ['fail_late_streamed', 'fail-late'],
  ['fail_quiet_streamed', 'fail-quiet'],
]) {
  scenario(name, async () => {
    const { error, ...seen } = await brokenStream(id)
    return { ...seen, leaks: leaks(error) }
  })
}

scenario('give_up_streamed', async () => {
  const { error, ...seen } = await brokenStream('give-up')
  return { ...seen, message: typeof error === 'string' ? error : error.message }
})

scenario('unknown_model', () => expectFailure('nobody'))

scenario('bad_parameter', async () => {
  try {
    await ask('echo', { temperature: 9 })
  } catch (error) {
    return { status: error.statusCode, param: error.data.error.param, type: error.data.error.type }
  }
})

// --- leaving

scenario('abandon', async () => {
  const key = newKey()
  const pieces = []
  const leave = new AbortController()
  for await (const piece of askStream('stall', { abortSignal: leave.signal }, key).textStream) {
    pieces.push(piece)
    leave.abort()
  }
  return { pieces, cancelled: await cancelled(key), runs: await runs(key) }
})

scenario('too_late', async () => {
  const key = newKey()
  try {
    await ask('stuck', { abortSignal: AbortSignal.timeout(2000) }, key)
  } catch (error) {
    return { error: error.name, cancelled: await cancelled(key), runs: await runs(key) }
  }
})

await main()
