// Load: writers and readers that go on until they are told to stop, and count what failed.
package main

import (
	"bytes"
	"context"
	"fmt"
	"sync"

	"k8s.io/apiserver/pkg/storage/value"
)

// workers write and read at once.
const workers = 4

// errorsKept of each storm are reported; the others are only counted.
const errorsKept = 5

// tally is what a storm came to. Wrong counts reads that returned other bytes than were written.
type tally struct {
	Writes int      `json:"writes"`
	Reads  int      `json:"reads"`
	Failed int      `json:"failed"`
	Wrong  int      `json:"wrong"`
	Errors []string `json:"errors"`
}

type storm struct {
	cancel context.CancelFunc
	done   sync.WaitGroup
	mutex  sync.Mutex
	tally  tally
}

func startStorm(ctx context.Context, s *server) *storm {
	ctx, cancel := context.WithCancel(ctx)
	st := &storm{cancel: cancel}
	for worker := range workers {
		st.done.Add(1)
		go func() {
			defer st.done.Done()
			for n := 0; ctx.Err() == nil; n++ {
				st.once(s, fmt.Sprintf("/registry/secrets/storm/w%d-%d", worker, n))
			}
		}()
	}
	return st
}

// once writes one object and reads it back. It uses no context that a stop would cancel: nothing fails by stopping.
func (st *storm) once(s *server, key string) {
	plain, where := []byte("storm of "+key), value.DefaultContext(key)
	stored, err := s.secrets.TransformToStorage(context.Background(), plain, where)
	if err != nil {
		st.failed(fmt.Sprintf("write: %v", err))
		return
	}
	back, _, err := s.secrets.TransformFromStorage(context.Background(), stored, where)
	st.mutex.Lock()
	st.tally.Writes++
	if err == nil {
		st.tally.Reads++
		if !bytes.Equal(back, plain) {
			st.tally.Wrong++
		}
	}
	st.mutex.Unlock()
	if err != nil {
		st.failed(fmt.Sprintf("read: %v", err))
	}
}

func (st *storm) failed(what string) {
	st.mutex.Lock()
	defer st.mutex.Unlock()
	st.tally.Failed++
	if len(st.tally.Errors) < errorsKept {
		st.tally.Errors = append(st.tally.Errors, what)
	}
}

func (st *storm) stop() tally {
	st.cancel()
	st.done.Wait()
	return st.tally
}
