// A program in Go, which makes its system calls without libc and is interrupted by its own signals: does what cilium/ebpf does
// at its lowest level, in many goroutines on several threads. Prints what calls gave.
package main

import (
	"fmt"
	"os"
	"runtime"
	"sync"
	"syscall"
	"unsafe"
)

const (
	mapCreate = iota
	mapLookup
	mapUpdate
	_
	mapNextKey
	_
	objPin
	objGet
)

var sysBPF = map[string]uintptr{"amd64": 321, "arm64": 280}[runtime.GOARCH]

func bpf(cmd int, attr unsafe.Pointer, size uintptr) (int, error) {
	for {
		result, _, errno := syscall.Syscall(sysBPF, uintptr(cmd), uintptr(attr), size)
		runtime.KeepAlive(attr)
		if errno == syscall.EINTR || errno == syscall.EAGAIN {
			continue
		}
		if errno != 0 {
			return -1, errno
		}
		return int(result), nil
	}
}

type createAttr struct {
	mapType, keySize, valueSize, maxEntries uint32
}

type elemAttr struct {
	fd         uint32
	_          uint32
	key, value unsafe.Pointer
	flags      uint64
}

type objAttr struct {
	path unsafe.Pointer
	fd   uint32
	_    uint32
}

func elem(cmd, fd int, key *uint32, value unsafe.Pointer) error {
	attr := elemAttr{fd: uint32(fd), key: unsafe.Pointer(key), value: value}
	_, err := bpf(cmd, unsafe.Pointer(&attr), unsafe.Sizeof(attr))
	return err
}

func named(cmd int, path string, fd int) (int, error) {
	name, _ := syscall.BytePtrFromString(path)
	attr := objAttr{path: unsafe.Pointer(name), fd: uint32(fd)}
	return bpf(cmd, unsafe.Pointer(&attr), unsafe.Sizeof(attr))
}

func main() {
	const entries, rounds = 16, 300
	attr := createAttr{2, 4, 8, entries}
	fd, err := bpf(mapCreate, unsafe.Pointer(&attr), unsafe.Sizeof(attr))
	fmt.Println("create", fd > 2, err)

	var all sync.WaitGroup
	for i := uint32(0); i < entries; i++ {
		all.Add(1)
		go func(key uint32) {
			defer all.Done()
			for round := 0; round < rounds; round++ {
				value := make([]uint64, 1)
				if err := elem(mapLookup, fd, &key, unsafe.Pointer(&value[0])); err != nil {
					fmt.Println("lookup", err)
				}
				value[0]++
				if err := elem(mapUpdate, fd, &key, unsafe.Pointer(&value[0])); err != nil {
					fmt.Println("update", err)
				}
				if round%100 == 0 {
					runtime.GC()
				}
			}
		}(i)
	}
	all.Wait()
	var sum, value uint64
	var key, next uint32
	count := 0
	for at := (*uint32)(nil); elem(mapNextKey, fd, at, unsafe.Pointer(&next)) == nil; at = &key {
		key = next
		count++
		if err := elem(mapLookup, fd, &key, unsafe.Pointer(&value)); err != nil {
			fmt.Println("lookup", err)
		}
		sum += value
	}
	fmt.Println("counted", count, sum)
	past := uint32(entries)
	fmt.Println("past the end", elem(mapLookup, fd, &past, unsafe.Pointer(&value)))

	var fs syscall.Statfs_t
	fmt.Println("statfs", syscall.Statfs("/sys/fs/bpf", &fs), uint32(fs.Type) == 0xcafe4a11)
	_, err = named(objPin, "/sys/fs/bpf/go", fd)
	fmt.Println("pin", err)
	_, err = os.Stat("/sys/fs/bpf/go")
	fmt.Println("stat", err)
	again, err := named(objGet, "/sys/fs/bpf/go", 0)
	fmt.Println("get", again > 2, err, elem(mapLookup, again, &key, unsafe.Pointer(&value)), value)
	fmt.Println("unpin", os.Remove("/sys/fs/bpf/go"))
	_, err = named(objGet, "/sys/fs/bpf/go", 0)
	fmt.Println("get", err)
}
