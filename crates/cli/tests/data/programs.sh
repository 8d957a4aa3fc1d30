# Loads objects with bpftool, asks about their programs, and runs them on the packet that comes first. Prints what bpftool says, a
# line for each answer.
packet=$1
shift
for object; do
  bpftool prog loadall "$object" /sys/fs/bpf/all && echo "$object"
  for program in $(ls /sys/fs/bpf/all); do
    pinned="pinned /sys/fs/bpf/all/$program"
    bpftool -j prog show $pinned
    bpftool -j prog run $pinned data_in "$packet" data_out - repeat 2
    bpftool prog dump xlated $pinned | grep -c ': (' > /dev/null && echo "dumped $program"
  done
  rm -r /sys/fs/bpf/all
done
