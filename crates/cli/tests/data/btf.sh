# Loads objects with bpftool, and asks about the types of their programs and maps, and for the values of their maps by these types, after
# a run on the packet that comes first. Prints what bpftool says.
packet=$1
shift

# Ids are others each time.
without_ids() {
  sed -E ':next; s/("(prog|map)_ids":\[(_,)*)[0-9]+/\1_/; t next; s/"(id|btf_id)":[0-9]+/"\1":_/g'
}

bpftool btf show id 4000000000 2>&1
for object; do
  echo "$object"
  bpftool prog loadall "$object" /sys/fs/bpf/all pinmaps /sys/fs/bpf/maps
  for program in $(ls /sys/fs/bpf/all); do
    pinned="pinned /sys/fs/bpf/all/$program"
    taskset -c 0 bpftool prog run $pinned data_in "$packet" 2>&1 | grep -o "failed.*"
    id=$(bpftool -j prog show $pinned | sed -n 's/.*"btf_id":\([0-9]*\).*/\1/p')
  done
  bpftool -j btf show id "$id" | without_ids
  for source in "prog $pinned" "id $id"; do
    bpftool btf dump $source
    bpftool -j btf dump $source
    bpftool btf dump $source format c
  done
  # Those of the live kernel are many, and not of interest.
  bpftool -j btf list | grep -o "\"id\":$id," | sed 's/[0-9]*,/listed/'
  for map in $(ls /sys/fs/bpf/maps); do
    pinned="pinned /sys/fs/bpf/maps/$map"
    echo "$map"
    bpftool -j map show $pinned | without_ids
    for part in key value kv all; do
      bpftool btf dump map $pinned $part 2>&1
      bpftool -j btf dump map $pinned $part 2>&1
    done
    # The values of the others are ids.
    bpftool -j map show $pinned | grep -q '"type":"\(percpu_\)\?array"' || continue
    bpftool map dump $pinned 2>&1
    bpftool -j map dump $pinned 2>&1
    bpftool map lookup $pinned key 0 0 0 0 2>&1
  done
  rm -r /sys/fs/bpf/all /sys/fs/bpf/maps
done
