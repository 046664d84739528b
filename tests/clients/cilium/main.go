// A program of cilium/ebpf: it loads tests/bpf/client.bpf.c, attaches, makes traffic, and prints what the programs have seen.
//
//	cilium OBJECT xdp | cilium OBJECT cgroup DIRECTORY
package main

import (
	"errors"
	"fmt"
	"net"
	"os"
	"syscall"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
	"github.com/cilium/ebpf/ringbuf"
)

const (
	arrived = iota
	_
	sent
	refused
)

const loopback = 1

func must(what string, err error) {
	if err != nil {
		fmt.Fprintf(os.Stderr, "%s: %v\n", what, err)
		os.Exit(1)
	}
}

func sendPackets() {
	connection, err := net.Dial("udp4", "127.0.0.1:9")
	must("socket", err)
	for i := 0; i < 5; i++ {
		connection.Write([]byte("packet"))
	}
	connection.Close()
}

func main() {
	specification, err := ebpf.LoadCollectionSpec(os.Args[1])
	must("read", err)
	kind := os.Args[2]
	wanted := map[string][]string{
		"xdp":    {"count_arrived"},
		"cgroup": {"count_sent", "refuse_connect"},
	}[kind]
	// One kind of program: the container was granted no other.
	programs := map[string]*ebpf.ProgramSpec{}
	for _, name := range wanted {
		programs[name] = specification.Programs[name]
	}
	specification.Programs = programs
	collection, err := ebpf.NewCollection(specification)
	must("load", err)
	counted := func(which uint32) (value uint64) {
		must("look up", collection.Maps["counters"].Lookup(which, &value))
		return value
	}
	switch kind {
	case "xdp":
		attached, err := link.AttachXDP(link.XDPOptions{Program: collection.Programs["count_arrived"], Interface: loopback})
		must("attach xdp", err)
		lengths, err := ringbuf.NewReader(collection.Maps["lengths"])
		must("ring buffer", err)
		sendPackets()
		first, err := lengths.Read()
		must("ring buffer", err)
		fmt.Printf("arrived %d, record of %d bytes\n", counted(arrived), len(first.RawSample))
		attached.Close()
	case "cgroup":
		directory := os.Args[3]
		egress, err := link.AttachCgroup(link.CgroupOptions{
			Path: directory, Attach: ebpf.AttachCGroupInetEgress, Program: collection.Programs["count_sent"],
		})
		must("attach cgroup_skb", err)
		connect, err := link.AttachCgroup(link.CgroupOptions{
			Path: directory, Attach: ebpf.AttachCGroupInet4Connect, Program: collection.Programs["refuse_connect"],
		})
		must("attach connect4", err)
		sendPackets()
		_, err = net.Dial("tcp4", "127.0.0.1:7")
		var number syscall.Errno
		errors.As(err, &number)
		fmt.Printf("sent %d, refused %d, connect %d\n", counted(sent), counted(refused), int(number))
		egress.Close()
		connect.Close()
	}
}
