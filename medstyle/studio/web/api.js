// Talk to the server: sets of files, and jobs whose progress arrives by server-sent events.

const tell = what => dispatchEvent(new Event(what)); // to the frame, in app.js

export async function ask(method, path, body, headers = {}) {
  let answer;
  try {
    answer = await fetch(path, { method, body, headers });
  } catch {
    tell("unanswered");
    throw new Error("The studio does not answer.");
  }
  if (answer.status === 204) return {};
  const content = await answer.text();
  let found = {};
  try { found = JSON.parse(content); } catch { found = { error: content }; }
  if (answer.status === 401) tell("unknown");
  if (!answer.ok) throw new Error(found.error || `The studio answered ${answer.status}.`);
  return found;
}

const LINES = 4; // files that are sent at the same time

export async function send(files, told) {
  const { set } = await ask("POST", "api/sets");
  const waiting = [...files];
  let done = 0;
  const line = async () => {
    for (let one = waiting.shift(); one; one = waiting.shift()) {
      await ask("PUT", `api/sets/${set}`, one.file, { "X-Name": encodeURIComponent(one.name) });
      told(++done, files.length);
    }
  };
  await Promise.all(Array.from({ length: LINES }, line));
  return set;
}

// Start a job. `job.done` resolves to its result; `job.cancel()` stops it.
export async function start(kind, given = {}, told = () => {}) {
  const { name } = await ask("POST", `api/jobs/${kind}`, JSON.stringify(given));
  const base = `api/jobs/${name}`;
  const done = new Promise((resolve, reject) => {
    const source = new EventSource(`${base}/events`);
    source.onmessage = event => {
      const job = JSON.parse(event.data);
      told(job);
      if (["done", "failed", "cancelled"].includes(job.state)) {
        source.close();
        if (job.state === "done") resolve({ ...job.result, job: name, base: `${base}/files/` });
        else reject(new Error(job.state === "failed" ? job.error : "Cancelled."));
      }
    };
    source.onerror = () => {
      tell("unanswered");
      if (source.readyState === EventSource.CLOSED) reject(new Error("The studio ended before this job did; start it again."));
    };
  });
  return { done, cancel: () => ask("DELETE", base) };
}

export const run = async (kind, given, told) => (await start(kind, given, told)).done;
