// From logits to the next id, as mmcli/generate/sampler.py does it: repetition penalty -> temperature -> top-k -> top-p
// -> min-p -> draw. The same logits, seed and position give the same id.

const WORD = (1n << 64n) - 1n;
const BUFFER = new Float64Array(1);

// A number in [0, 1) that depends on (seed, position) alone: Philox 4x64-10 (Salmon et al. 2011).
export function uniform(seed, position) {
  let [a, b, c, d] = [BigInt(position) + 1n, 0n, 0n, 0n];
  let [keyA, keyC] = [BigInt(seed), 0n];
  for (let round = 0; round < 10; round++) {
    const productA = a * 0xd2e7470ee14c6c93n;
    const productC = c * 0xca5a826395121157n;
    [a, b, c, d] = [(productC >> 64n) ^ b ^ keyA, productC & WORD, (productA >> 64n) ^ d ^ keyC, productA & WORD];
    keyA = (keyA + 0x9e3779b97f4a7c15n) & WORD;
    keyC = (keyC + 0xbb67ae8584caa73bn) & WORD;
  }
  return Number(a >> 11n) * 2 ** -53;
}

// logits: Float32Array of the vocabulary. seen: ids that the repetition penalty applies to. position: tokens before.
export function sample(logits, config, seen, position) {
  const scores = penalized(logits, seen, config.repetition_penalty);
  if (config.temperature === 0) return argmax(scores);
  let { ids, values } = candidates(scores, config.top_k);
  const highest = values.reduce((one, other) => Math.max(one, other), -Infinity);
  const temperature = Math.fround(Math.max(config.temperature, 1e-30));
  values = values.map((value) => Math.fround(Math.fround(value - highest) / temperature));
  const keep = (isKept) => {
    const kept = ids.map((_, at) => isKept(values[at]));
    [ids, values] = [ids.filter((_, at) => kept[at]), values.filter((_, at) => kept[at])];
  };
  if (config.top_p < 1) {
    const limit = topP(values, config.top_p);
    keep((value) => weight(value) >= limit);
  }
  if (config.min_p > 0) {
    const least = Math.fround(Math.log(config.min_p));
    keep((value) => value >= least);
  }
  // The running sum goes by id, not by rank, so tiny differences that swap two ranks move nothing behind them.
  let total = 0;
  const cumulated = values.map((value) => (total += Math.exp(value)));
  const drawn = Math.min(uniform(config.seed, position) * total, below(total));
  return ids[cumulated.findIndex((sum) => sum > drawn)];
}

const weight = (score) => Math.fround(Math.exp(score));

// The largest number below a positive one.
function below(value) {
  BUFFER[0] = value;
  const bits = new BigInt64Array(BUFFER.buffer);
  bits[0] -= 1n;
  return BUFFER[0];
}

function argmax(scores) {
  let best = 0;
  for (let id = 1; id < scores.length; id++) if (scores[id] > scores[best]) best = id;
  return best;
}

// CTRL's repetition penalty (Keskar et al. 2019).
function penalized(logits, seen, penalty) {
  if (penalty === 1) return logits;
  const scores = Float32Array.from(logits);
  const factor = Math.fround(penalty);
  for (const id of new Set(seen)) scores[id] = logits[id] > 0 ? logits[id] / factor : logits[id] * factor;
  return scores;
}

// The k best, with every tie of the last, in the order of their ids; all of them with k = 0.
function candidates(scores, k) {
  const isLimited = k > 0 && k < scores.length;
  const kth = isLimited ? Float32Array.from(scores).sort()[scores.length - k] : -Infinity;
  const ids = [];
  for (let id = 0; id < scores.length; id++) if (scores[id] >= kth) ids.push(id);
  return { ids, values: ids.map((id) => scores[id]) };
}

// The least weight among the fewest most likely candidates that have the share `share`.
function topP(values, share) {
  const falling = values.map(weight).sort((one, other) => other - one);
  const total = falling.reduce((sum, each) => sum + each, 0);
  let sum = 0;
  for (const each of falling) if ((sum += each) >= share * total) return each;
  return falling.at(-1);
}
