// Draws the charts in the page's colors, keeps relative times current, and replaces the page when its data changes.
"use strict";

const POLL_MS = 10_000, PENDING_POLL_MS = 700;
const darkScheme = matchMedia("(prefers-color-scheme: dark)");
let charts = [];

function theme() {
  const style = getComputedStyle(document.documentElement);
  const css = (name) => style.getPropertyValue(name).trim();
  const [text, muted, border] = ["--text", "--muted", "--border"].map(css);
  const series = css("--series").split(",").map((color) => color.trim());
  const font = getComputedStyle(document.body).fontFamily;
  return {
    background: "transparent", font, padding: 2,
    view: { stroke: null },
    range: { category: series, ordinal: series },
    mark: { color: series[0] },
    rule: { color: muted },
    style: { muted: { stroke: muted, strokeWidth: 1.5 }, mark: { fill: series[0], stroke: series[0] } },
    axis: {
      labelColor: muted, titleColor: muted, gridColor: border, domainColor: border, tickColor: border,
      labelFontSize: 12, titleFontSize: 12, titleFontWeight: "normal", titlePadding: 8,
    },
    axisX: { grid: false },
    legend: { labelColor: text, titleColor: muted, labelFontSize: 12, titleFontSize: 12, titleFontWeight: "normal", symbolSize: 90, columnPadding: 14, labelLimit: 220 },
  };
}

async function drawCharts() {
  charts.forEach((chart) => chart.finalize());
  charts = [];
  const colors = theme();
  for (const chart of document.querySelectorAll(".chart")) {
    const spec = JSON.parse(chart.querySelector("script").textContent);
    const plot = chart.querySelector(".plot");
    const narrow = plot.clientWidth < 400;
    const legend = { ...colors.legend, columns: narrow ? 2 : 5, labelLimit: narrow ? 105 : 220 };
    const config = { ...colors, legend, axisY: { labelLimit: narrow ? 120 : 170 } };
    // `ast` interprets expressions: the Content-Security-Policy forbids compiling them.
    charts.push(await vegaEmbed(plot, spec, {
      config, renderer: "svg", actions: false, ast: true, defaultStyle: false, tooltip: { disableDefaultStyle: true },
    }));
    plot.classList.add("rendered");
  }
}

const units = [["day", 86400], ["hour", 3600], ["minute", 60], ["second", 1]];
const relative = new Intl.RelativeTimeFormat("en", { numeric: "auto" });
const absolute = new Intl.DateTimeFormat("en-GB", { dateStyle: "medium", timeStyle: "short" });

function showTimes() {
  for (const time of document.querySelectorAll("time")) {
    const at = new Date(time.dateTime), seconds = (at - Date.now()) / 1000;
    const [unit, length] = units.find(([, each]) => Math.abs(seconds) >= each) ?? units.at(-1);
    time.title = absolute.format(at);
    time.textContent = time.dataset.format === "absolute" ? absolute.format(at) : relative.format(Math.round(seconds / length), unit);
  }
}

async function keepPolling() {
  await poll();
  setTimeout(keepPolling, "pending" in document.getElementById("page").dataset ? PENDING_POLL_MS : POLL_MS);
}

async function poll() {
  if (document.hidden) return;
  const response = await fetch(`/state${location.search}`).catch(() => null);
  if (response?.status === 401) return location.assign("/login");
  if (!response?.ok) return;
  const { state, read_at } = await response.json();
  if (state !== document.getElementById("page").dataset.state) return replacePage();
  for (const age of document.querySelectorAll(".age")) {
    const at = read_at[age.dataset.panel];
    if (at) age.querySelector("time").dateTime = new Date(at * 1000).toISOString();
  }
  showTimes();
}

async function replacePage() {
  const response = await fetch(location.href).catch(() => null);
  if (!response?.ok) return;
  const fresh = new DOMParser().parseFromString(await response.text(), "text/html");
  const page = fresh.getElementById("page");
  if (!page) return location.assign("/login");
  const openPanels = [...document.querySelectorAll("#page details[open]")].map((each) => each.closest("section").id);
  for (const id of openPanels) page.querySelector(`#${id} details`)?.setAttribute("open", "");
  document.title = fresh.title;
  document.querySelector(".model-form select").replaceWith(fresh.querySelector(".model-form select"));
  document.getElementById("page").replaceWith(page);
  showTimes();
  await drawCharts();
}

document.documentElement.classList.add("scripted");
document.addEventListener("change", (event) => event.target.matches(".model-form select") && event.target.form.submit());
document.addEventListener("visibilitychange", poll);
darkScheme.addEventListener("change", drawCharts);
showTimes();
drawCharts().finally(() => { document.documentElement.dataset.ready = "true"; });
setInterval(showTimes, 1000);
setTimeout(keepPolling, PENDING_POLL_MS);
