// Command driver is the storage side of one kube-apiserver, and nothing else of it: the code of k8s.io/apiserver that
// reads an EncryptionConfiguration, polls the KMS plugin, reloads the file when it changes, and makes of an object the
// bytes for etcd and back. One process is one API server.
//
// It is driven by JSON lines on standard input and answers each with one JSON line on standard output, in order. It
// ends with its input, so it never outlives the test that started it. What it must not do is think: no rule about KMS
// plugins is in here, they are all in the library.
package main

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"os"
	"runtime/debug"
)

// request is one line of input: an operation and what it needs.
type request struct {
	Op      string   `json:"op"`
	Config  string   `json:"config"`
	PollMS  int      `json:"poll_ms"`
	Objects []object `json:"objects"`
}

// object is an etcd key with a plaintext (to write) or a stored value (to read).
type object struct {
	Key  string `json:"key"`
	Data []byte `json:"data"`
}

// result is what became of one object. Data is absent when Error is not.
type result struct {
	Data  []byte `json:"data,omitempty"`
	Stale bool   `json:"stale"`
	Error string `json:"error,omitempty"`
}

// answer is one line of output. Error is set when the operation itself could not be done.
type answer struct {
	Error   string   `json:"error,omitempty"`
	Version string   `json:"version,omitempty"`
	Results []result `json:"results,omitempty"`
	Ready   string   `json:"ready,omitempty"`
	Samples []sample `json:"samples,omitempty"`
	Storm   *tally   `json:"storm,omitempty"`
}

func main() {
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	input := bufio.NewReaderSize(os.Stdin, 1<<20)
	output := json.NewEncoder(os.Stdout)
	d := &driver{ctx: ctx}
	for {
		line, err := input.ReadBytes('\n')
		if err != nil {
			return
		}
		var req request
		var ans answer
		if err := json.Unmarshal(line, &req); err != nil {
			ans.Error = err.Error()
		} else {
			ans = d.do(req)
		}
		if err := output.Encode(ans); err != nil {
			return
		}
	}
}

// do is the table of operations.
func (d *driver) do(req request) answer {
	if req.Op != "load" && d.server == nil {
		return answer{Error: "nothing is loaded"}
	}
	switch req.Op {
	case "load":
		if err := d.load(req.Config, req.PollMS); err != nil {
			return answer{Error: err.Error()}
		}
		return answer{Version: apiserverVersion()}
	case "write":
		return answer{Results: d.server.write(d.ctx, req.Objects)}
	case "read":
		return answer{Results: d.server.read(d.ctx, req.Objects)}
	case "readyz":
		return answer{Ready: d.server.readyz(d.ctx)}
	case "metrics":
		samples, err := gather()
		if err != nil {
			return answer{Error: err.Error()}
		}
		return answer{Samples: samples}
	case "storm":
		d.storm = startStorm(d.ctx, d.server)
		return answer{}
	case "calm":
		if d.storm == nil {
			return answer{Error: "there is no storm"}
		}
		counted := d.storm.stop()
		d.storm = nil
		return answer{Storm: &counted}
	default:
		return answer{Error: fmt.Sprintf("unknown operation %q", req.Op)}
	}
}

// apiserverVersion is which k8s.io/apiserver this binary was built with.
func apiserverVersion() string {
	info, ok := debug.ReadBuildInfo()
	if !ok {
		return "unknown"
	}
	for _, module := range info.Deps {
		if module.Path == "k8s.io/apiserver" {
			return module.Version
		}
	}
	return "unknown"
}
