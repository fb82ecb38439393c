// --- users ----------------------------------------------------------------------------------------------------

// One iteration of a class: its user's first steps, or one task and the rest after it. A k6 VU can pass from one class
// to another, and is another user in each.
function turn(kind) {
  const began = Date.now();
  const user = kind.user || (kind.user = enter(kind));
  if (!user.started) {
    // In an iteration of their own, so that their figures are kept apart.
    exec.vu.metrics.tags.scenario = `${kind.name}:on_start`;
    kind.on_start.forEach((step) => attempt(user, step));
    user.started = user.tagged = true;
    return;
  }
  if (user.tagged) {
    exec.vu.metrics.tags.scenario = kind.name;
    user.tagged = false;
  }
  attempt(user, weighted(kind.tasks, kind.weights));
  const rest = kind.rest(began);
  // A user that rests when the load ends does not hold it up.
  if (rest > 0) sleep(Math.max(0, Math.min(rest, (user.ends - Date.now()) / 1000 + 0.1)));
}

function enter(kind) {
  const number = exec.vu.idInTest;
  const user = {
    number,
    rows: Object.create(null),
    captured: Object.create(null),
    counts: [],
    jar: kind.keep_cookies ? new http.CookieJar() : undefined,
    started: kind.on_start.length === 0,
    tagged: false,
    ends: exec.scenario.startTime + LOAD_MILLISECONDS,
  };
  randomSeed(seed(kind, number));
  kind.identify(user);
  if (kind.equip) kind.equip(user, kind);
  return user;
}

function attempt(user, task) {
  try {
    task.run ? task.run(user) : perform(user, task);
  } catch (error) {
    warn(`${task.name}: ${error.stack || error}`);
    check(error, { [`${task.name} runs without errors`]: () => false });
  }
}

function perform(user, task) {
  const { url, body, headers, cookies } = task.request(user);
  const params = task.params;
  params.headers = headers;
  if (cookies) params.cookies = cookies;
  if (user.jar) params.jar = user.jar;
  const response = http.request(task.method, url, body, params);
  if (check(response, task.checks) && task.captures) keep(user, task, response);
}

function keep(user, task, response) {
  let answer;
  try {
    answer = JSON.parse(response.body);
  } catch (error) {
    warn(`${task.name}: the answer is no JSON`);
  }
  for (const { name, path } of task.captures) {
    let value = answer;
    for (const key of path) {
      const found = typeof value === "object" && value !== null && Object.prototype.hasOwnProperty.call(value, key);
      value = found ? value[key] : undefined;
    }
    user.captured[name] = value === undefined ? null : value;
    if (value === undefined) warn(`${task.name}: the answer has no ${path.join(".")}`);
    check(value, { [`${task.name} has ${name}`]: (value) => value !== undefined });
  }
}

let warnings = 0;

function warn(message) {
  if (++warnings <= 3) console.warn(message);
}

// --- rests, in seconds ----------------------------------------------------------------------------------------

const between = (low, high) => low + Math.random() * (high - low);
const pacing = (began, seconds) => seconds - (Date.now() - began) / 1000;
const poisson = (rate) => -Math.log(1 - Math.random()) / rate;

// --- rows -----------------------------------------------------------------------------------------------------

// Each user has `part` rows (0: all), which begin `step` rows after those of the user before.
function pool(name, part, step) {
  const rows = new SharedArray(name, () => JSON.parse(open(`./pool-${name}.json`)));
  const count = rows.length;
  return { name, rows, count, size: part === 0 ? count : Math.min(part, count), step };
}

// The row at a place of the user's part. A shared row is read anew each time, so small parts are kept.
function row(user, pool, place) {
  const kept = user.rows[pool.name] || (user.rows[pool.name] = []);
  if (kept[place] !== undefined) return kept[place];
  const found = pool.rows[((user.number - 1) * pool.step + place) % pool.count];
  if (pool.size <= 200) kept[place] = found;
  return found;
}

const draw = (user, pool) => row(user, pool, int(0, pool.size - 1));

// So many different rows (Floyd's way to a sample), each written by `write`.
function several(user, pool, low, high, write) {
  const places = [];
  const values = [];
  for (let place = pool.size - Math.min(int(low, high), pool.size); place < pool.size; place++) {
    const other = int(0, place);
    places.push(places.includes(other) ? place : other);
    values.push(write(row(user, pool, places[places.length - 1])));
  }
  return values.join(",");
}

// --- values: the same seed gives a user the same ones -----------------------------------------------------------

// The seed of a user's `Math.random`. k6 takes it modulo 2^31 - 1; users differ in it, whatever the run's seed is.
function seed(kind, number) {
  let hash = 0x811c9dc5;
  for (const character of SEED) hash = Math.imul(hash ^ character.charCodeAt(0), 16777619);
  return ((hash >>> 1) + kind.index * 1000003 + number) % 2147483647;
}

const int = (low, high) => low + Math.floor(Math.random() * (high - low + 1));

function hex(digits) {
  let found = "";
  while (found.length < digits) found += Math.floor(Math.random() * 4294967296).toString(16).padStart(8, "0");
  return found.slice(0, digits);
}

function uuid() {
  const digits = hex(32);
  const variant = "89ab"[parseInt(digits[16], 16) % 4];
  const last = `${variant}${digits.slice(17, 20)}-${digits.slice(20)}`;
  return `${digits.slice(0, 8)}-${digits.slice(8, 12)}-4${digits.slice(13, 16)}-${last}`;
}

function private_ip() {
  const end = `${int(0, 255)}.${int(1, 254)}`;
  const range = int(0, 2);
  if (range === 0) return `10.${int(0, 255)}.${end}`;
  return range === 1 ? `172.${int(16, 31)}.${end}` : `192.168.${end}`;
}

const choice = (values) => values[int(0, values.length - 1)];

// One of the values, by their weights, of which each is the sum up to it.
function weighted(values, weights) {
  const at = Math.random() * weights[weights.length - 1];
  let place = 0;
  while (at >= weights[place]) place++;
  return values[place];
}

const now = () => new Date().toISOString();
const timestamp = (from, to) => new Date(Date.now() + from + Math.random() * (to - from)).toISOString();

// Counts per user and place in the script.
function sequence(user, place, start) {
  user.counts[place] = place in user.counts ? user.counts[place] + 1 : start;
  return user.counts[place];
}

// --- how values are written --------------------------------------------------------------------------------------

function text(value) {
  if (typeof value === "string") return value;
  if (value === null || value === undefined) return "";
  return typeof value === "object" ? JSON.stringify(value) : String(value);
}

const json = (value) => (value === undefined ? "null" : JSON.stringify(value));
const json_text = (value) => JSON.stringify(text(value)).slice(1, -1);
const CONTROLS = /[\x00-\x1f\x7f]+/g;
const header = (value) => text(value).replace(CONTROLS, " ");

function url(value) {
  try {
    return encodeURIComponent(text(value));
  } catch (error) {
    return encodeURIComponent(JSON.parse(JSON.stringify(text(value)).replace(/\\ud[89a-f][0-9a-f]{2}/g, "\\ufffd")));
  }
}
