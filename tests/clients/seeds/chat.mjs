import OpenAI from 'openai';

const openai = new OpenAI({
  baseURL: '$BASE/v1',
  apiKey: '$API_KEY',
});

const response = await openai.chat.completions.create({
  model: 'qwen3-30b-a3b',
  messages: [{ role: 'user', content: 'Hello!' }],
});

console.log(response.choices[0].message.content);
