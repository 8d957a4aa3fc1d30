/* A program that uses libbpf's skeletons, as bpftool writes them: prints what it found. The same with the kernel as with
 * `bpfarray exec`. */
#include <bpf/bpf.h>
#include <bpf/libbpf.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

int main(int argc, char **argv)
{
	static char file[1 << 20];
	static struct bpf_object *object;
	static struct bpf_program *program;
	static struct bpf_map *classes, *data_map, *bss_map;
	static unsigned int *data;
	static unsigned long *bss;
	struct bpf_map_skeleton maps[] = {
		{"packets_by_port_class", &classes},
		{"packet_c.data", &data_map, (void **)&data},
		{"packet_c.bss", &bss_map, (void **)&bss},
	};
	struct bpf_prog_skeleton programs[] = {{"count_packets", &program}};
	struct bpf_object_skeleton skeleton = {
		.sz = sizeof(skeleton), .name = "packet_count", .obj = &object, .data = file,
		.map_cnt = 3, .map_skel_sz = sizeof(maps[0]), .maps = maps,
		.prog_cnt = 1, .prog_skel_sz = sizeof(programs[0]), .progs = programs,
	};
	FILE *stream = fopen(argv[argc - 1], "r");

	skeleton.data_sz = fread(file, 1, sizeof(file), stream);
	fclose(stream);
	printf("open %d\n", bpf_object__open_skeleton(&skeleton, NULL));
	*data = 60;
	printf("load %d\n", bpf_object__load_skeleton(&skeleton));

	/* An ARP packet. */
	unsigned char packet[64] = {[12] = 8, [13] = 6};
	LIBBPF_OPTS(bpf_test_run_opts, run, .data_in = packet, .data_size_in = sizeof(packet), .repeat = 1000);
	int fd = bpf_program__fd(program), result = bpf_prog_test_run_opts(fd, &run);

	printf("run %d %u, too long %lu\n", result, run.retval, bss[0]);
	*data = 1500;
	result = bpf_prog_test_run_opts(fd, &run);
	printf("run %d %u, too long %lu\n", result, run.retval, bss[0]);

	unsigned int key = 0;
	unsigned long value = 1;

	result = bpf_map_lookup_elem(bpf_map__fd(classes), &key, &value);
	printf("lookup %d %lu\n", result, value);

	struct bpf_prog_info info = {};
	struct bpf_map_info of_map = {};
	unsigned int size = sizeof(info);

	result = bpf_obj_get_info_by_fd(fd, &info, &size);
	printf("info %d %u %u %s %u %d %d\n", result, size, info.type, info.name, info.nr_map_ids, info.btf_id != 0, info.nr_func_info > 0);
	size = sizeof(of_map);
	bpf_obj_get_info_by_fd(bpf_map__fd(classes), &of_map, &size);
	printf("map %s %d\n", of_map.name, of_map.btf_id == info.btf_id);

	int again = bpf_prog_get_fd_by_id(info.id);

	/* Its mappings and descriptors go, the program stays. */
	bpf_object__close(object);
	result = bpf_prog_test_run_opts(again, &run);
	printf("by id %d %u\n", result, run.retval);
	close(again);
	/* The kernel takes its time with what nobody needs any more. */
	for (int tries = 0; tries < 100 && (fd = bpf_prog_get_fd_by_id(info.id)) > 0; tries++) {
		close(fd);
		usleep(10000);
	}
	printf("gone %d\n", fd);
	return 0;
}
