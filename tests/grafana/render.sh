#!/usr/bin/env bash
# Draws the dashboards of deploy/grafana on data of a running Prometheus, as PNG files:
#
#   tests/grafana/render.sh http://127.0.0.1:9090 JOB OUT_FOLDER [MINUTES]
#
# With Grafana's own components from npm (@grafana/ui), in headless Chromium. No Grafana server
# runs: panel plug-ins and the dashboard application are no packages. Needs node, npm and chromium;
# the packages (450 MB) are kept in $RETRI_CACHE or ~/.cache/retri.
set -eu -o pipefail

prometheus=$1 job=$2 out=$3 minutes=${4:-10}
here=$(cd "$(dirname "$0")" && pwd)
home=${RETRI_CACHE:-$HOME/.cache/retri}/grafana-render
mkdir -p "$home" "$out"
if [ ! -e "$home/node_modules/@grafana/ui" ]; then
    cp "$here/package.json" "$home/"
    (cd "$home" && npm install --legacy-peer-deps --no-audit --no-fund --silent)
fi
cp "$here/index.html" "$here/render.tsx" "$here/serve.mjs" "$home/"
mkdir -p "$home/public/dashboards"
cp "$here"/../../deploy/grafana/*.json "$home/public/dashboards/"
cat > "$home/vite.config.mjs" <<CONFIG
export default {
  define: { 'process.env': {}, global: 'globalThis' },
  build: { chunkSizeWarningLimit: 100000 },
  preview: { proxy: { '/prom': { target: '$prometheus', rewrite: (path) => path.slice(5) } } },
};
CONFIG
cd "$home"
[ dist/index.html -nt render.tsx ] || npx vite build --logLevel error
cp -r public/dashboards dist/
coproc SERVER { exec node serve.mjs; }
server=$SERVER_PID
trap 'kill $server 2> /dev/null' EXIT
# Waits for its address, or for its end.
read -r url <&"${SERVER[0]}" || { echo "render: the page cannot be served" >&2; exit 1; }
profile=$(mktemp -d)
for name in training fleet incident; do
    height=$(node -e "const \
    d=JSON.parse(require('fs').readFileSync('public/dashboards/$name.json'));
        console.log(Math.max(...d.panels.map(p=>p.gridPos.y+p.gridPos.h))*38+60)")
    chromium --headless --no-sandbox --disable-gpu --disable-quic --no-first-run \
        --disable-background-networking --disable-component-update --disable-sync \
        --user-data-dir="$profile" --virtual-time-budget=30000 --window-size=1460,"$height" \
        --screenshot="$out/$name.png" \
        "$url/?name=$name&job=$job&minutes=$minutes" 2> chromium.log
    echo "$out/$name.png"
done
rm -rf "$profile"
