// Talk to the server: sets of files, and jobs whose progress arrives by server-sent events.

export async function ask(method, path, body, headers = {}) {
  let answer;
  try {
    answer = await fetch(path, { method, body, headers });
  } catch {
    throw new Error("The studio does not answer. Is it still running? Start it again with `medstyle studio`, "
      + "then reload this page.");
  }
  if (answer.status === 204) return {};
  const content = await answer.text();
  let found = {};
  try { found = JSON.parse(content); } catch { found = { error: content }; }
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
      if (source.readyState === EventSource.CLOSED) reject(new Error("The studio has ended or forgotten this job; reload the page."));
    };
  });
  return { done, cancel: () => ask("DELETE", base) };
}

export const run = async (kind, given, told) => (await start(kind, given, told)).done;
