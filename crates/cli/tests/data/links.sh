# What bpftool does with links: links.sh OBJECT. Run with the kernel in a mount namespace of its own.
set -eu
map=/sys/fs/bpf/bpfarray_link_map
iter=/sys/fs/bpf/bpfarray_link_iter
again=/sys/fs/bpf/bpfarray_link_again
bpftool map create "$map" type array key 4 value 8 entries 3 name elements
bpftool map update pinned "$map" key 1 0 0 0 value 7 0 0 0 0 0 0 0
bpftool iter pin "$1" "$iter" map pinned "$map"
cat "$iter"
bpftool map update pinned "$map" key 2 0 0 0 value 9 0 0 0 0 0 0 0
while read -r line; do echo "read $line"; done < "$iter"
bpftool link show pinned "$iter"
bpftool -j link show
echo
bpftool link pin id "$(bpftool -j link show pinned "$iter" | tr , '\n' | sed -n 's/.*"id"://p')" "$again"
bpftool link detach pinned "$iter" 2>&1 || true
rm "$iter" "$map"
cat "$again"
rm "$again"
bpftool -j link show
