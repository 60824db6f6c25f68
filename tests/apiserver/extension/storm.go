// Load: writers and readers that go on until they are told to stop, and count what failed.
package main

import (
	"encoding/json"
	"fmt"
	"net/http"
	"reflect"
	"sync"
	"sync/atomic"
)

// workers write and read at once.
const workers = 4

// errorsKept of each storm are reported; the others are only counted.
const errorsKept = 5

// tally is what a storm came to. Wrong counts reads that returned another object than was written.
type tally struct {
	Writes int      `json:"writes"`
	Reads  int      `json:"reads"`
	Failed int      `json:"failed"`
	Wrong  int      `json:"wrong"`
	Errors []string `json:"errors"`
}

type storm struct {
	client *http.Client
	url    string
	body   json.RawMessage
	over   atomic.Bool
	done   sync.WaitGroup
	mutex  sync.Mutex
	tally  tally
}

func startStorm(client *http.Client, wanted request) *storm {
	st := &storm{client: client, url: wanted.URL, body: wanted.Body}
	for worker := range workers {
		st.done.Add(1)
		go func() {
			defer st.done.Done()
			for n := 0; !st.over.Load(); n++ {
				st.once(fmt.Sprintf("storm-%d-%d", worker, n))
			}
		}()
	}
	return st
}

// once makes one object, reads it back, and removes it.
func (st *storm) once(name string) {
	object := map[string]any{}
	if err := json.Unmarshal(st.body, &object); err != nil {
		st.failed(err.Error())
		return
	}
	object["metadata"] = map[string]any{"name": name}
	body, err := json.Marshal(object)
	if err != nil {
		st.failed(err.Error())
		return
	}
	made := send(st.client, request{Method: http.MethodPost, URL: st.url, Body: body})
	if made.Status != http.StatusCreated {
		st.failed(fmt.Sprintf("write: %d %s%s", made.Status, made.Error, made.Body))
		return
	}
	read := send(st.client, request{Method: http.MethodGet, URL: st.url + "/" + name})
	back := map[string]any{}
	bad := read.Status != http.StatusOK || json.Unmarshal([]byte(read.Body), &back) != nil
	st.mutex.Lock()
	st.tally.Writes++
	if !bad {
		st.tally.Reads++
		if !reflect.DeepEqual(back["spec"], object["spec"]) {
			st.tally.Wrong++
		}
	}
	st.mutex.Unlock()
	if bad {
		st.failed(fmt.Sprintf("read: %d %s%s", read.Status, read.Error, read.Body))
	}
	gone := send(st.client, request{Method: http.MethodDelete, URL: st.url + "/" + name})
	if gone.Status != http.StatusOK {
		st.failed(fmt.Sprintf("delete: %d %s%s", gone.Status, gone.Error, gone.Body))
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
	st.over.Store(true)
	st.done.Wait()
	return st.tally
}
