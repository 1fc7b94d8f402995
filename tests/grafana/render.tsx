// Draws a dashboard of deploy/grafana with Grafana's own components (npm packages @grafana/ui and
// @grafana/data) on data of a real Prometheus. It stands in for the parts of Grafana that are no
// packages: it substitutes the variables, places the panels, and draws each kind of panel that
// tests/src/monitoring makes. See render.sh.
import React from 'react';
import { createRoot } from 'react-dom/client';
import {
  createTheme, toDataFrame, FieldType, applyFieldOverrides, getDisplayProcessor, getFieldDisplayValues,
  standardFieldConfigEditorRegistry, dateTime, ThemeContext,
} from '@grafana/data';
import * as U from '@grafana/ui';

const parameters = new URLSearchParams(location.search);
const theme = createTheme({ colors: { mode: (parameters.get('mode') as any) || 'dark' } });
const job = parameters.get('job') || '';
const minutes = Number(parameters.get('minutes') || '10');
const step = Math.max(1, Math.round((minutes * 60) / 300));
const COLUMN = 60, ROW = 38;

const substitute = (text: string) =>
  text.replaceAll('$job', job).replaceAll('$__rate_interval', `${Math.max(20, 4 * step)}s`)
    .replaceAll('$__range', `${minutes}m`).replaceAll('$__interval', `${step}s`);
const legend = (format: string, labels: any) =>
  format ? format.replace(/\{\{\s*(\w+)\s*\}\}/g, (_, key) => labels[key] ?? '') : JSON.stringify(labels);

async function query(target: any, from: number, to: number) {
  if (target.instant) from = to;
  const url = `/prom/api/v1/query_range?query=${encodeURIComponent(substitute(target.expr))}` +
    `&start=${from / 1e3}&end=${to / 1e3}&step=${step}`;
  const answer = await (await fetch(url)).json();
  if (answer.status !== 'success') throw new Error(answer.error);
  return answer.data.result.map((series: any) => {
    const name = legend(target.legendFormat, series.metric);
    // A missing sample is a gap, not a line through it.
    const known = new Map(series.values.map((it: any) => [it[0], +it[1]]));
    const times: number[] = [], values: (number | null)[] = [];
    for (let at = from / 1e3; at <= to / 1e3; at += step) {
      times.push(at * 1000);
      const value = known.get(at) as number | undefined;
      values.push(value === undefined || Number.isNaN(value) ? null : value);
    }
    return toDataFrame({
      name, refId: target.refId,
      fields: [
        { name: 'Time', type: FieldType.time, values: times, config: {} },
        { name: 'Value', type: FieldType.number, labels: series.metric, values, config: { displayNameFromDS: name } },
      ],
    });
  });
}

function prepare(panel: any, frames: any[]) {
  frames = applyFieldOverrides({
    data: frames, fieldConfig: panel.fieldConfig, theme, timeZone: 'utc',
    replaceVariables: (text: string) => text, fieldConfigRegistry: standardFieldConfigEditorRegistry,
  } as any);
  let index = 0;
  for (const frame of frames) for (const field of frame.fields) {
    if (field.type === 'number') {
      field.config = { ...panel.fieldConfig.defaults, ...field.config };
      field.state = { ...(field.state || {}), seriesIndex: index++ };
    }
    field.display = getDisplayProcessor({ field, theme, timeZone: 'utc' } as any);
  }
  return frames;
}

// Grafana's state timeline is a panel plug-in and no package: the same bars, with its colours.
function Timeline({ frames, width, height, from, to }: any) {
  const label = 150, row = Math.max(14, Math.min(40, (height - 24) / Math.max(1, frames.length)));
  return <svg width={width} height={height} style={{ font: '11px sans-serif' }}>
    {frames.map((frame: any, number: number) => {
      const [time, value] = [frame.fields[0], frame.fields[1]];
      const bars: any[] = [];
      for (let i = 0; i < time.values.length; i++) {
        const shown = value.values[i];
        const last = bars[bars.length - 1];
        if (last && last.value === shown) last.end = time.values[i] + step * 1000;
        else bars.push({ value: shown, begin: time.values[i], end: time.values[i] + step * 1000 });
      }
      const x = (at: number) => label + ((at - from) / (to - from)) * (width - label - 8);
      return <g key={number}>
        <text x={label - 8} y={number * row + row / 2 + 4} textAnchor="end" fill={theme.colors.text.primary}>
          {String(value.config.displayNameFromDS).slice(0, 22)}</text>
        {bars.filter((bar) => bar.value !== null).map((bar, i) => {
          const display = value.display(bar.value);
          const mapped = (value.config.mappings || []).length > 0;
          const colour = mapped && display.color ? display.color
            : theme.visualization.getColorByName(theme.visualization.palette[bar.value % theme.visualization.palette.length]);
          const wide = Math.max(1, x(Math.min(bar.end, to)) - x(bar.begin));
          return <g key={i}>
            <rect x={x(bar.begin)} y={number * row + 2} width={wide} height={row - 4} fill={colour} fillOpacity={0.75} />
            {wide > 46 && <text x={x(bar.begin) + 4} y={number * row + row / 2 + 4} fill="#fff">{display.text}</text>}
          </g>;
        })}
      </g>;
    })}
    {[0, 0.25, 0.5, 0.75, 1].map((part) => <text key={part} fill={theme.colors.text.secondary}
      x={label + part * (width - label - 40)} y={height - 4}>
      {dateTime(from + part * (to - from)).utc().format('HH:mm:ss')}</text>)}
  </svg>;
}

function Panel({ panel, width, height, range }: any) {
  const [frames, setFrames] = React.useState<any>(null), [error, setError] = React.useState('');
  const [from, to] = [range.from.valueOf(), range.to.valueOf()];
  React.useEffect(() => {
    (async () => {
      try {
        let found: any[] = [];
        for (const target of panel.targets) found = found.concat(await query(target, from, to));
        setFrames(prepare(panel, found));
      } catch (problem) { setError(String(problem)); }
    })();
  }, []);
  const draw = (width: number, height: number) => {
    if (error) return <pre style={{ color: 'red', whiteSpace: 'pre-wrap' }}>{error}</pre>;
    if (!frames) return <span />;
    const nothing = <div style={{ padding: 12, textAlign: 'center', fontSize: 20 }}>
      {panel.fieldConfig.defaults.noValue || 'No data'}</div>;
    if (!frames.length) return nothing;
    const values = () => getFieldDisplayValues({
      fieldConfig: panel.fieldConfig, reduceOptions: { calcs: ['lastNotNull'], values: false }, data: frames, theme,
      replaceVariables: (text: string) => text, timeZone: 'utc', fieldConfigRegistry: standardFieldConfigEditorRegistry,
    } as any);
    const { TimeSeries, BigValue, BarGauge } = U as any;
    switch (panel.type) {
      case 'timeseries':
        return <TimeSeries frames={frames} structureRev={1} timeRange={range} timeZone="utc" width={width} height={height}
          legend={panel.options.legend} options={panel.options} replaceVariables={(text: string) => text} />;
      case 'stat': {
        const value = values()[0];
        // Grafana names the value only if there are several.
        return value ? <BigValue theme={theme} width={width} height={height} value={{ ...value.display, title: '' }}
          colorMode={panel.options.colorMode} graphMode="none" justifyMode="center" /> : nothing;
      }
      case 'bargauge':
        return <div style={{ display: 'flex', flexDirection: 'column', gap: 4 }}>{values().map((value: any, i: number, all: any[]) =>
          <BarGauge key={i} theme={theme} width={width} height={Math.min(34, (height - 8) / all.length - 4)} orientation="horizontal"
            field={{ ...value.field, max: Math.max(1, ...all.map((it) => it.display.numeric)) }} value={value.display}
            display={value.view?.getFieldDisplayProcessor?.(value.colIndex)} displayMode="gradient" />)}</div>;
      case 'state-timeline':
        return <Timeline frames={frames} width={width} height={height} from={from} to={to} />;
      default:
        return <div>no drawing for {panel.type}</div>;
    }
  };
  return <U.PanelChrome title={panel.title} width={width} height={height}>{(w: number, h: number) => <>{draw(w, h)}</>}</U.PanelChrome>;
}

async function main() {
  const dashboard = await (await fetch(`/dashboards/${parameters.get('name')}.json`)).json();
  const end = Math.floor(Date.now() / 1000 / step) * step * 1000;
  const to = dateTime(end), from = dateTime(end - minutes * 60_000);
  const range: any = { from, to, raw: { from, to } };
  const height = Math.max(...dashboard.panels.map((it: any) => it.gridPos.y + it.gridPos.h)) * ROW;
  createRoot(document.getElementById('root')!).render(<ThemeContext.Provider value={theme}>
    <U.GlobalStyles />
    <div style={{ padding: 8, fontSize: 18 }}>{dashboard.title}{job && dashboard.uid !== 'retri-fleet' && ` — ${job}`}</div>
    <div style={{ position: 'relative', width: 24 * COLUMN, height }}>{dashboard.panels.map((panel: any) => {
      const { x, y, w, h } = panel.gridPos;
      return <div key={panel.id} style={{ position: 'absolute', left: x * COLUMN, top: y * ROW }}>
        {panel.type === 'row' ? <h4 style={{ padding: 8 }}>{panel.title}</h4>
          : <Panel panel={panel} width={w * COLUMN - 8} height={h * ROW - 8} range={range} />}
      </div>;
    })}</div>
  </ThemeContext.Provider>);
}
main();
