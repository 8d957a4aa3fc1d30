/* A program on libbpf's perf buffers: prints what it found, times left out. The same with the kernel as with `bpfarray exec`. */
#define _GNU_SOURCE
#include <bpf/bpf.h>
#include <bpf/libbpf.h>
#include <linux/perf_event.h>
#include <sched.h>
#include <stdio.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

static unsigned long samples, bytes, losses;
static int verbose = 1;

static void on_sample(void *context, int cpu, void *data, __u32 size)
{
	samples++;
	bytes += size;
	if (!verbose)
		return;
	printf("sample %s %d %u:", (char *)context, cpu, size);
	for (__u32 i = 0; i < size && i < 8; i++)
		printf(" %02x", ((unsigned char *)data)[i]);
	printf("\n");
}

static void on_loss(void *context, int cpu, __u64 count)
{
	losses += count;
	printf("lost %s %d %llu\n", (char *)context, cpu, count);
}

static enum bpf_perf_event_ret on_event(void *context, int cpu, struct perf_event_header *event)
{
	struct { struct perf_event_header header; __u64 time; __u32 size; unsigned char data[]; } *sample = (void *)event;

	printf("event %s %d %u %u %d %u %02x\n", (char *)context, cpu, event->type, event->size, sample->time != 0, sample->size, sample->data[0]);
	return LIBBPF_PERF_EVENT_CONT;
}

static struct bpf_object *object;

static int run(const char *name, __u64 argument)
{
	__u64 arguments[2] = {argument};
	LIBBPF_OPTS(bpf_test_run_opts, options, .ctx_in = arguments, .ctx_size_in = sizeof(arguments));
	int fd = bpf_program__fd(bpf_object__find_program_by_name(object, name));
	int error = bpf_prog_test_run_opts(fd, &options);

	return error ? error : (int)options.retval;
}

#define CURRENT_CPU 0xffffffffull

int main(int argc, char **argv)
{
	cpu_set_t first;

	/* The maps have slots for few CPUs. */
	CPU_ZERO(&first);
	CPU_SET(0, &first);
	sched_setaffinity(0, sizeof(first), &first);
	object = bpf_object__open(argv[argc - 1]);
	printf("load %d\n", bpf_object__load(object));

	int rings = bpf_object__find_map_fd_by_name(object, "rings");
	struct perf_buffer *buffer = perf_buffer__new(rings, 1, on_sample, on_loss, "pages", NULL);

	printf("buffer %d %d\n", buffer != NULL, perf_buffer__buffer_fd(buffer, 0) > 2);
	printf("nothing yet %d\n", perf_buffer__poll(buffer, 0));
	printf("output %d %d\n", run("output", CURRENT_CPU), run("output", 0));
	printf("poll %d", perf_buffer__poll(buffer, 1000));
	printf(" and again %d\n", perf_buffer__poll(buffer, 20));
	/* Lengths without padding, which shows what was there before. */
	for (int length = 4; length < 64; length += 8)
		run("output_length", length);
	printf("consume %d\n", perf_buffer__consume(buffer));
	verbose = 0;
	printf("every length %d", run("every_length", 0));
	printf(" %d,", perf_buffer__consume_buffer(buffer, 0));
	printf(" %lu samples of %lu bytes\n", samples, bytes);
	printf("flood %#x\n", run("full", 300));
	samples = 0;
	printf("poll %d,", perf_buffer__poll(buffer, 1000));
	printf(" %lu samples\n", samples);
	verbose = 1;
	printf("output %d\n", run("output", CURRENT_CPU));
	printf("poll %d,", perf_buffer__poll(buffer, 1000));
	printf(" %lu lost\n", losses);
	fflush(stdout);
	for (int i = 0; i < 3; i++) {
		pid_t child = fork();

		if (child == 0) {
			usleep(20000);
			_exit(run("output_length", 4 + 8 * i));
		}
		printf("of a child %d", perf_buffer__poll(buffer, 10000));
		int status = 1;

		waitpid(child, &status, 0);
		printf(" %d\n", status);
	}
	perf_buffer__free(buffer);
	printf("freed %d\n", run("output", CURRENT_CPU));

	struct perf_event_attr attr = {
		.type = PERF_TYPE_SOFTWARE, .config = PERF_COUNT_SW_BPF_OUTPUT, .size = sizeof(attr),
		.sample_type = PERF_SAMPLE_RAW | PERF_SAMPLE_TIME, .sample_period = 1, .wakeup_events = 2,
	};
	int cpus[] = {0}, keys[] = {3};
	LIBBPF_OPTS(perf_buffer_raw_opts, options, .cpu_cnt = 1, .cpus = cpus, .map_keys = keys);

	buffer = perf_buffer__new_raw(rings, 64, &attr, on_event, "raw", &options);
	printf("raw %d %zu\n", buffer != NULL, perf_buffer__buffer_cnt(buffer));
	printf("output %d\n", run("output", CURRENT_CPU));
	for (int i = 0; i < 2; i++) {
		printf("output %d\n", run("output", 3));
		printf("poll %d\n", perf_buffer__poll(buffer, 20));
	}
	perf_buffer__free(buffer);
	bpf_object__close(object);
	return 0;
}
