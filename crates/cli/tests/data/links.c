/* Opens and loads an object with element iterators as a skeleton does, links its programs to maps and reads what they write. The
 * same with the kernel as with `bpfarray exec`: links OBJECT, of testdata/progs/map_elem_iter.bpf.c. Ids are not shown. */
#include <bpf/bpf.h>
#include <bpf/libbpf.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

static char file[1 << 16];

static void show_text(const char *what, int fd)
{
	char text[256];
	int size;

	printf("%s %s\n", what, fd > 2 ? "ok" : "failed");
	while ((size = read(fd, text, sizeof(text))) > 0)
		printf("%.*s", size, text);
	printf("%d\n", size);
	close(fd);
}

static struct bpf_link *attach(struct bpf_program *program, int map)
{
	union bpf_iter_link_info info = {.map = {.map_fd = map}};
	LIBBPF_OPTS(bpf_iter_attach_opts, opts, .link_info = &info, .link_info_len = sizeof(info));

	return bpf_program__attach_iter(program, &opts);
}

int main(int argc, char **argv)
{
	struct bpf_object *object = NULL;
	struct bpf_map *numbers;
	struct bpf_program *show, *count, *raw;
	struct bpf_map_skeleton maps[] = {{"numbers", &numbers}};
	struct bpf_prog_skeleton programs[] = {{"show", &show}, {"count", &count}, {"raw", &raw}};
	struct bpf_object_skeleton skeleton = {
		.sz = sizeof(skeleton), .name = "map_elem_iter", .obj = &object, .data = file,
		.map_cnt = 1, .map_skel_sz = sizeof(maps[0]), .maps = maps,
		.prog_cnt = 3, .prog_skel_sz = sizeof(programs[0]), .progs = programs,
	};
	FILE *stream = fopen(argv[argc - 1], "r");

	libbpf_set_print(NULL);

	skeleton.data_sz = fread(file, 1, sizeof(file), stream);
	fclose(stream);
	printf("open %d\n", bpf_object__open_skeleton(&skeleton, NULL));
	printf("load %d\n", bpf_object__load_skeleton(&skeleton));

	int map = bpf_map__fd(numbers);
	unsigned int key = 1;
	unsigned long value = 7;

	bpf_map_update_elem(map, &key, &value, 0);

	struct bpf_link *link = attach(show, map);

	printf("link %d\n", libbpf_get_error(link) == 0);
	show_text("iterator", bpf_iter_create(bpf_link__fd(link)));
	printf("update %d\n", bpf_link__update_program(link, count));
	show_text("iterator", bpf_iter_create(bpf_link__fd(link)));
	bpf_map_lookup_elem(map, &key, &value);
	printf("value %lu\n", value);

	/* What raw shows of a value has 8 bytes. */
	int small = bpf_map_create(BPF_MAP_TYPE_ARRAY, "small", 4, 4, 1, NULL);
	int programs_map = bpf_map_create(BPF_MAP_TYPE_PROG_ARRAY, "programs", 4, 4, 1, NULL);

	printf("small %ld programs %ld closed %ld\n", libbpf_get_error(attach(raw, small)),
	       libbpf_get_error(attach(show, programs_map)), libbpf_get_error(attach(show, 4000)));

	struct bpf_link_info info = {};
	unsigned int size = sizeof(info);
	char name[32] = "";

	info.iter.target_name = (unsigned long)name;
	info.iter.target_name_len = sizeof(name);
	int result = bpf_obj_get_info_by_fd(bpf_link__fd(link), &info, &size);

	printf("info %d %u %d %s %u\n", result, size, info.type, name, info.iter.target_name_len);

	const char *path = "/sys/fs/bpf/bpfarray_libbpf_link";

	unlink(path);
	printf("pin %d\n", bpf_link__pin(link, path));

	int id = bpf_link_get_fd_by_id(info.id);

	printf("by id %d\n", id > 2);
	close(id);

	/* An iterator that a child reads, who knows nothing of BPF. */
	int iterator = bpf_iter_create(bpf_link__fd(link));

	fflush(stdout);
	if (fork() == 0) {
		dup2(iterator, 0);
		execlp("cat", "cat", NULL);
		_exit(1);
	}
	close(iterator);
	wait(NULL);

	/* The pin keeps the link, and that the program and the map. */
	bpf_link__destroy(link);
	bpf_object__close(object);
	show_text("pinned", open(path, O_RDONLY | O_CLOEXEC));
	link = bpf_link__open(path);
	printf("opened %d\n", libbpf_get_error(link) == 0);
	show_text("again", bpf_iter_create(bpf_link__fd(link)));
	printf("detach %d unpin %d\n", bpf_link__detach(link), bpf_link__unpin(link));
	bpf_link__destroy(link);
	/* The kernel takes its time with what nobody needs any more. */
	for (int tries = 0; tries < 100 && (id = bpf_map_get_fd_by_id(info.iter.map.map_id)) > 0; tries++) {
		close(id);
		usleep(10000);
	}
	printf("gone %d %d\n", bpf_link_get_fd_by_id(info.id), id);
	return 0;
}
