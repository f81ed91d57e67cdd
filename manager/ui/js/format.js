// Numbers, sizes and times as people read them.

const UNITS = ["B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB"];

/** Three digits and a unit: 5.60 TiB. @param {number} size */
export function bytes(size) {
  let value = size, unit = 0;
  while (value >= 1024 && unit < UNITS.length - 1) { value /= 1024; unit += 1; }
  const digits = unit === 0 ? 0 : value < 9.995 ? 2 : value < 99.95 ? 1 : 0;
  return `${value.toFixed(digits)} ${UNITS[unit]}`;
}

/** The bytes of a text such as `20 GiB`, `20G` or `512`; null for what is none. @param {string} text @returns {number | null} */
export function parseBytes(text) {
  const found = /^\s*(\d+(?:\.\d+)?)\s*(?:([kmgtpe])(?:i?b)?|b)?\s*$/i.exec(text);
  if (!found) return null;
  const power = found[2] ? "kmgtpe".indexOf(found[2].toLowerCase()) + 1 : 0;
  return Math.round(Number(found[1]) * 1024 ** power);
}

/** @param {number} ms */
export function milliseconds(ms) {
  return ms < 1 ? "<1 ms" : ms < 1000 ? `${Math.round(ms)} ms` : `${(ms / 1000).toFixed(1)} s`;
}

const RELATIVE = new Intl.RelativeTimeFormat("en", { numeric: "auto", style: "short" });
/** @type {[Intl.RelativeTimeFormatUnit, number][]} */
const STEPS = [["day", 86_400], ["hour", 3_600], ["minute", 60], ["second", 1]];

/** How long ago: `5 min. ago`. @param {string | null | undefined} time */
export function ago(time) {
  if (!time) return "never";
  const seconds = Math.round((new Date(time).getTime() - Date.now()) / 1000);
  if (Math.abs(seconds) < 2) return "now";
  const [unit, size] = STEPS.find(([, size]) => Math.abs(seconds) >= size) ?? ["second", 1];
  return RELATIVE.format(Math.round(seconds / size), unit);
}

/** The moment itself, in the reader's zone. @param {string | null | undefined} time */
export function moment(time) {
  return time ? new Date(time).toLocaleString(undefined, { dateStyle: "medium", timeStyle: "medium" }) : "—";
}

/** A span of time in its two largest units: `1 h 5 min`. @param {number} seconds */
export function duration(seconds) {
  const whole = Math.max(0, Math.round(seconds));
  if (whole < 60) return `${whole} s`;
  const [unit, size, lower, part] = whole < 3_600 ? ["min", 60, "s", 1] : whole < 86_400 ? ["h", 3_600, "min", 60] : ["d", 86_400, "h", 3_600];
  const rest = Math.floor((whole % Number(size)) / Number(part));
  return `${Math.floor(whole / Number(size))} ${unit}${rest ? ` ${rest} ${lower}` : ""}`;
}

/** @param {number} count @param {string} noun @param {string} [plural] */
export function count(count, noun, plural = `${noun}s`) {
  return `${count} ${count === 1 ? noun : plural}`;
}

/** `clone_from_image` → `clone from image`. @param {string} name */
export function words(name) {
  return name.replaceAll("_", " ");
}

/** @param {string} text */
export function capital(text) {
  return text.charAt(0).toUpperCase() + text.slice(1);
}

/** {tier: "gold"} → `tier=gold`. @param {Record<string, string>} labels */
export function labelText(labels) {
  return Object.entries(labels).map(([key, value]) => `${key}=${value}`).join(", ");
}

/** `tier=gold, rack=4` → an object. A word without `=` becomes a key without a value. @param {string} text */
export function parseLabels(text) {
  /** @type {Record<string, string>} */
  const labels = {};
  for (const word of text.split(",").map((each) => each.trim()).filter(Boolean)) {
    const [key, ...rest] = word.split("=");
    labels[key.trim()] = rest.join("=").trim();
  }
  return labels;
}
