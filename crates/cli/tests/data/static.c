/* A program that does without the libc that a preloaded library could take the place of: statically linked, its system calls
 * made by number, in several threads and processes. Prints what they gave: the same with the kernel as with
 * `bpfarray exec --seccomp`, but for what follows "only here". */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <linux/bpf.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/vfs.h>
#include <sys/wait.h>
#include <unistd.h>

enum { ENTRIES = 8, ROUNDS = 500, THREADS = 4 };

static long bpf(int cmd, union bpf_attr *attr, unsigned int size)
{
	long result = syscall(SYS_bpf, cmd, attr, size);
	return result < 0 ? -errno : result;
}

static int create(void)
{
	union bpf_attr attr = { .map_type = BPF_MAP_TYPE_ARRAY, .key_size = 4, .value_size = 8, .max_entries = ENTRIES };
	attr.map_flags = BPF_F_MMAPABLE;
	return bpf(BPF_MAP_CREATE, &attr, sizeof(attr));
}

static long elem(int cmd, int fd, unsigned int key, unsigned long *value)
{
	union bpf_attr attr = { .map_fd = fd, .key = (unsigned long)&key, .value = (unsigned long)value };
	return bpf(cmd, &attr, 32);
}

static unsigned int id_of(int fd)
{
	struct bpf_map_info info = {};
	union bpf_attr attr = { .info = { .bpf_fd = fd, .info_len = sizeof(info), .info = (unsigned long)&info } };
	bpf(BPF_OBJ_GET_INFO_BY_FD, &attr, sizeof(attr.info));
	return info.id;
}

static long by_id(unsigned int id)
{
	union bpf_attr attr = { .map_id = id };
	return bpf(BPF_MAP_GET_FD_BY_ID, &attr, 12);
}

static long named(int cmd, const char *path, int fd)
{
	union bpf_attr attr = { .pathname = (unsigned long)path, .bpf_fd = fd };
	return bpf(cmd, &attr, 16);
}

static int shared;

static void *count(void *argument)
{
	unsigned long key = (unsigned long)argument, value;
	for (int i = 0; i < ROUNDS; i++) {
		if (elem(BPF_MAP_LOOKUP_ELEM, shared, key, &value))
			return "lookup";
		value++;
		if (elem(BPF_MAP_UPDATE_ELEM, shared, key, &value))
			return "update";
	}
	return NULL;
}

static void threads(void)
{
	pthread_t thread[THREADS];
	unsigned long value, sum = 0;
	void *failed;

	for (long i = 0; i < THREADS; i++)
		pthread_create(&thread[i], NULL, count, (void *)i);
	for (long i = 0; i < THREADS; i++) {
		pthread_join(thread[i], &failed);
		elem(BPF_MAP_LOOKUP_ELEM, shared, i, &value);
		sum += failed ? 0 : value;
	}
	printf("threads %lu\n", sum);
}

static void children(void)
{
	unsigned long value = 77;
	int status, ends[2];
	unsigned int id;

	if (pipe(ends))
		exit(1);
	if (fork() == 0) {
		unsigned long found = 0;
		long result = elem(BPF_MAP_LOOKUP_ELEM, shared, 0, &found);
		int own = create();
		id = id_of(own);
		if (write(ends[1], &id, 4) != 4)
			exit(1);
		exit(result == 0 && found == ROUNDS && elem(BPF_MAP_UPDATE_ELEM, shared, 7, &value) == 0 ? 3 : 4);
	}
	wait(&status);
	value = 0;
	elem(BPF_MAP_LOOKUP_ELEM, shared, 7, &value);
	printf("child %d %lu\n", WEXITSTATUS(status), value);
	if (read(ends[0], &id, 4) != 4)
		exit(1);
	printf("its map is gone with it %ld\n", by_id(id));
	close(ends[0]);
	close(ends[1]);
}

static void descriptors(void)
{
	unsigned long value = 5, found = 0;
	int first = create(), other = create(), file = open("/dev/null", O_RDONLY), again;
	long result;

	printf("close on exec %d\n", fcntl(first, F_GETFD));
	elem(BPF_MAP_UPDATE_ELEM, other, 1, &value);
	dup2(other, first);
	result = elem(BPF_MAP_LOOKUP_ELEM, first, 1, &found);
	printf("replaced %ld %lu\n", result, found);
	dup2(file, first);
	printf("no map %ld\n", elem(BPF_MAP_LOOKUP_ELEM, first, 1, &found));
	close(first);
	printf("closed %ld\n", elem(BPF_MAP_LOOKUP_ELEM, first, 1, &found));
	again = by_id(id_of(other));
	printf("once more %d %d\n", again > 2, elem(BPF_MAP_LOOKUP_ELEM, again, 1, &found) == 0);
	printf("nowhere %ld %ld\n", bpf(BPF_MAP_CREATE, (void *)8, 72), elem(BPF_MAP_LOOKUP_ELEM, other, 1, (void *)8));
	/* A value in memory that must not be written. */
	printf("constant %ld\n", elem(BPF_MAP_LOOKUP_ELEM, other, 1, (unsigned long *)"constant"));
	close(again);
	close(other);
	close(file);
}

static void only_here(const char *directory)
{
	char path[256];
	struct statfs fs = {};
	struct stat file = {};
	void *window;
	int fd;

	puts("only here");
	statfs("/sys/fs/bpf", &fs);
	printf("bpffs %#lx", (unsigned long)fs.f_type);
	printf(" mount %d", mount("bpf", "/sys/fs/bpf", "bpf", 0, NULL));
	printf(" elsewhere %d", mount("bpf", directory, "bpf", 0, NULL));
	printf(" %d\n", errno);
	printf("mkdir %d\n", mkdir("/sys/fs/bpf/d", 0700));
	printf("pin %ld", named(BPF_OBJ_PIN, "/sys/fs/bpf/d/m", shared));
	printf(" again %ld", named(BPF_OBJ_PIN, "/sys/fs/bpf/d/m", shared));
	printf(" stat %d", stat("/sys/fs/bpf/d/m", &file));
	printf(" get %d", named(BPF_OBJ_GET, "/sys/fs/bpf/d/m", 0) > 2);
	fd = open("/sys/fs/bpf/d", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	printf(" open %d", fd > 2);
	fstatfs(fd, &fs);
	printf(" %#lx", (unsigned long)fs.f_type);
	printf(" unlink %d", unlink("/sys/fs/bpf/d/m"));
	printf(" get %ld", named(BPF_OBJ_GET, "/sys/fs/bpf/d/m", 0));
	printf(" rmdir %d\n", rmdir("/sys/fs/bpf/d"));
	/* Files and directories of other places are what they always were. */
	snprintf(path, sizeof(path), "%s/file", directory);
	fd = open(path, O_RDWR | O_CREAT | O_TRUNC, 0600);
	printf("file %d %d", fd > 2, ftruncate(fd, 4096));
	window = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	printf(" mapped %d unlink %d\n", window != MAP_FAILED, unlink(path));
	window = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED, shared, 0);
	printf("map mapped %d", window != MAP_FAILED);
	printf(" %d", errno);
	window = mmap(NULL, 8192, PROT_READ, MAP_SHARED, shared, 0);
	printf(" too long %d\n", errno);
#ifdef __x86_64__
	/* By other conventions of the processor: x32, and that of 32 bits. */
	long result = syscall(0x40000000 | SYS_bpf, 0, NULL, 0);
	printf("x32 %ld %d", result, errno);
	__asm__ volatile("int $0x80" : "=a"(result) : "a"(357), "b"(0), "c"(0), "d"(0) : "memory");
	printf(" i386 %ld\n", result);
#endif
}

int main(int count, char **arguments)
{
	unsigned long value = 42, found = 0;
	long result;

	shared = create();
	printf("create %d\n", shared > 2);
	printf("update %ld %ld\n", elem(BPF_MAP_UPDATE_ELEM, shared, 5, &value), elem(BPF_MAP_UPDATE_ELEM, shared, 8, &value));
	result = elem(BPF_MAP_LOOKUP_ELEM, shared, 5, &found);
	printf("lookup %ld %lu\n", result, found);
	threads();
	fflush(stdout);
	children();
	descriptors();
	printf("freeze %ld", bpf(BPF_MAP_FREEZE, &(union bpf_attr){ .map_fd = shared }, 4));
	printf(" update %ld\n", elem(BPF_MAP_UPDATE_ELEM, shared, 5, &value));
	if (count > 1)
		only_here(arguments[1]);
	return 0;
}
