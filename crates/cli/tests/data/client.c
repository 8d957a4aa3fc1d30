/* A program on libbpf's functions for maps: prints what they gave. The same with the kernel as with `bpfarray exec`. */
#include <bpf/bpf.h>
#include <bpf/libbpf.h>
#include <stdio.h>
#include <sys/mman.h>
#include <unistd.h>

enum { ENTRIES = 1000 };

int main(void)
{
	LIBBPF_OPTS(bpf_map_create_opts, opts, .map_flags = BPF_F_MMAPABLE);
	int fd = bpf_map_create(BPF_MAP_TYPE_ARRAY, "client", 4, 8, ENTRIES, &opts);
	unsigned int key = 7, count, cursor, last = ENTRIES;
	static unsigned int keys[ENTRIES];
	static unsigned long values[ENTRIES];
	unsigned long value = 42, found = 0;
	int result;

	printf("probe %d\n", libbpf_probe_bpf_map_type(BPF_MAP_TYPE_ARRAY, NULL));
	printf("create %d\n", fd > 0);
	printf("update %d\n", bpf_map_update_elem(fd, &key, &value, BPF_ANY));
	printf("again %d\n", bpf_map_update_elem(fd, &key, &value, BPF_NOEXIST));
	result = bpf_map_lookup_elem(fd, &key, &found);
	printf("lookup %d %lu\n", result, found);
	printf("past the end %d\n", bpf_map_lookup_elem(fd, &last, &found));

	unsigned long *window = mmap(NULL, ENTRIES * 8, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	if (window == MAP_FAILED)
		return 1;
	printf("mapped %lu\n", window[7]);
	window[8] = 5;
	count = ENTRIES;
	result = bpf_map_lookup_batch(fd, NULL, &cursor, keys, values, &count, NULL);
	printf("batch %d %u %u %lu\n", result, count, cursor, values[8]);
	for (count = 0; count < 5; count++)
		keys[count] = count == 4 ? ENTRIES : count;
	result = bpf_map_update_batch(fd, keys, values, &count, NULL);
	printf("update batch %d %u\n", result, count);

	struct bpf_map_info info = {};
	unsigned int len = sizeof(info);
	result = bpf_obj_get_info_by_fd(fd, &info, &len);
	printf("info %d %u %u %#x\n", result, len, info.max_entries, info.map_flags);
	int by_id = bpf_map_get_fd_by_id(info.id);
	printf("freeze while mapped %d\n", bpf_map_freeze(by_id));
	munmap(window, ENTRIES * 8);
	printf("freeze %d\n", bpf_map_freeze(by_id));
	printf("update %d\n", bpf_map_update_elem(fd, &key, &value, BPF_ANY));
	for (count = 0; bpf_map_get_next_key(fd, count ? &key : NULL, &key) == 0; count++)
		;
	printf("keys %u\n", count);
	close(by_id);
	printf("closed %d\n", bpf_map_freeze(by_id));
	return 0;
}
