#!/usr/bin/env bash
# Installs one role on this node. Run `make release` first (on GPU nodes `make release CUDA=1`).
#   sudo deploy/systemd/install.sh coordinator
#   sudo CUDA=1 deploy/systemd/install.sh worker
# Programs go to /opt/retri/bin with links in /usr/local/bin, the unit to /etc/systemd/system, and
# settings to /etc/retri; settings that exist are kept. Starts nothing. To upgrade a worker, stop it
# first. DESTDIR=… installs below another root; PROFILE=debug installs what `make build` compiled.
set -euo pipefail
umask 022
cd "$(dirname "$0")/../.."
role=${1:-}
root=${DESTDIR:-}
flavour=; [ "${CUDA:-0}" = 1 ] && flavour=-cuda
bin=target$flavour/${PROFILE:-release}
case $role in
  coordinator) programs=(coordinator) ;;
  # With the command line, for diagnosing faults on the node.
  worker) programs=(worker worker-rank worker-build coordinator) ;;
  *) echo "install: which role? deploy/systemd/install.sh coordinator|worker" >&2; exit 2 ;;
esac

# A folder as it is, but it belongs to whoever installs (root), who alone may change it: whoever
# built it must not be able to change what the service loads.
copy() {
  cp -a --no-preserve=ownership "$1" "$2"
  chmod -R u+rwX,go+rX,go-w "$2/$(basename "$1")"
}

for program in "${programs[@]}"; do
  if [ ! -x "$bin/$program" ]; then
    echo "install: $bin/$program is missing; run make release${flavour:+ CUDA=1} first" >&2
    exit 1
  fi
  install -D -m 755 "$bin/$program" "$root/opt/retri/bin/$program"
  mkdir -p "$root/usr/local/bin"
  ln -sfn "/opt/retri/bin/$program" "$root/usr/local/bin/$program"
done
install -D -m 644 deploy/README.md "$root/opt/retri/share/README.md"
unit=retri-$role.service settings=$root/etc/retri
install -D -m 644 "deploy/systemd/$unit" "$root/etc/systemd/system/$unit"
[ -e "$settings/$role.toml" ] || install -D -m 644 "deploy/$role.toml" "$settings/$role.toml"
[ -e "$settings/s3.env" ] || install -D -m 600 deploy/systemd/s3.env "$settings/s3.env"

if [ "$role" = worker ]; then
  mkdir -p "$root/opt/retri/torch"
  copy ".libtorch$flavour/lib" "$root/opt/retri/torch/"
  # What [masks] and [faces] of a data set's pipeline run; `make release` installs it.
  if [ -d .onnx ]; then copy "$(readlink -f .onnx)" "$root/opt/retri/"; fi
  # libtorch looks for the CUDA libraries beside its own folder.
  if [ -n "$flavour" ]; then copy .libtorch-cuda/../nvidia "$root/opt/retri/"; fi
fi
if [ -z "$root" ]; then systemctl daemon-reload; fi
echo "installed; edit /etc/retri/$role.toml, then: systemctl enable --now retri-$role"
