// Draws the charts in the page's colours, keeps times and ages right, and takes the new page once there is one.
"use strict";

const EVERY = 10_000, SOON = 700; // milliseconds between two looks at whether the page is still right
const dark = matchMedia("(prefers-color-scheme: dark)");
let drawn = [];

function theme() {
  const style = getComputedStyle(document.documentElement);
  const css = (name) => style.getPropertyValue(name).trim();
  const [text, quiet, line] = ["--text", "--quiet", "--line"].map(css);
  const series = css("--series").split(",").map((colour) => colour.trim());
  const font = getComputedStyle(document.body).fontFamily;
  return {
    background: "transparent", font, padding: 2,
    view: { stroke: null },
    range: { category: series, ordinal: series },
    mark: { color: series[0] },
    rule: { color: quiet },
    style: { quiet: { stroke: quiet, strokeWidth: 1.5 }, mark: { fill: series[0], stroke: series[0] } },
    axis: {
      labelColor: quiet, titleColor: quiet, gridColor: line, domainColor: line, tickColor: line,
      labelFontSize: 12, titleFontSize: 12, titleFontWeight: "normal", titlePadding: 8,
    },
    axisX: { grid: false },
    legend: { labelColor: text, titleColor: quiet, labelFontSize: 12, titleFontSize: 12, titleFontWeight: "normal", symbolSize: 90, columnPadding: 14, labelLimit: 220 },
  };
}

async function draw() {
  drawn.forEach((chart) => chart.finalize());
  drawn = [];
  const colours = theme();
  for (const chart of document.querySelectorAll(".chart")) {
    const spec = JSON.parse(chart.querySelector("script").textContent);
    const plot = chart.querySelector(".plot");
    const narrow = plot.clientWidth < 400;
    const legend = { ...colours.legend, columns: narrow ? 2 : 5, labelLimit: narrow ? 105 : 220 };
    const config = { ...colours, legend, axisY: { labelLimit: narrow ? 120 : 170 } };
    // `ast`: expressions are interpreted and not compiled, which the page's policy forbids.
    drawn.push(await vegaEmbed(plot, spec, {
      config, renderer: "svg", actions: false, ast: true, defaultStyle: false, tooltip: { disableDefaultStyle: true },
    }));
    plot.classList.add("drawn");
  }
}

const units = [["day", 86400], ["hour", 3600], ["minute", 60], ["second", 1]];
const relative = new Intl.RelativeTimeFormat("en", { numeric: "auto" });
const absolute = new Intl.DateTimeFormat("en-GB", { dateStyle: "medium", timeStyle: "short" });

function tellTimes() {
  for (const time of document.querySelectorAll("time")) {
    const at = new Date(time.dateTime), seconds = (at - Date.now()) / 1000;
    const [unit, length] = units.find(([, each]) => Math.abs(seconds) >= each) ?? units.at(-1);
    time.title = absolute.format(at);
    time.textContent = time.dataset.kind === "at" ? absolute.format(at) : relative.format(Math.round(seconds / length), unit);
  }
}

// Soon again while a panel waits for its first answer.
async function keepLooking() {
  await look();
  setTimeout(keepLooking, "pending" in document.getElementById("page").dataset ? SOON : EVERY);
}

async function look() {
  if (document.hidden) return;
  const answer = await fetch(`/state${location.search}`).catch(() => null);
  if (answer?.status === 401) return location.assign("/login");
  if (!answer?.ok) return;
  const { state, read_at } = await answer.json();
  if (state !== document.getElementById("page").dataset.state) return replace();
  for (const age of document.querySelectorAll(".age")) {
    const at = read_at[age.dataset.panel];
    if (at) age.querySelector("time").dateTime = new Date(at * 1000).toISOString();
  }
  tellTimes();
}

async function replace() {
  const answer = await fetch(location.href).catch(() => null);
  if (!answer?.ok) return;
  const fresh = new DOMParser().parseFromString(await answer.text(), "text/html");
  const page = fresh.getElementById("page");
  if (!page) return location.assign("/login");
  const open = [...document.querySelectorAll("#page details")].map((each) => each.open && each.closest("section").id);
  for (const id of open.filter(Boolean)) page.querySelector(`#${id} details`)?.setAttribute("open", "");
  document.title = fresh.title;
  document.querySelector(".choose select").replaceWith(fresh.querySelector(".choose select"));
  document.getElementById("page").replaceWith(page);
  tellTimes();
  await draw();
}

document.documentElement.classList.add("scripted");
document.addEventListener("change", (event) => event.target.matches(".choose select") && event.target.form.submit());
document.addEventListener("visibilitychange", look);
dark.addEventListener("change", draw);
tellTimes();
draw().finally(() => { document.documentElement.dataset.ready = "true"; });
setInterval(tellTimes, 1000);
setTimeout(keepLooking, SOON);
