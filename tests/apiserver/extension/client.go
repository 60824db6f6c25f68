// An HTTP client on JSON lines, with the test's certificates.
package main

import (
	"bufio"
	"bytes"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"time"
)

// request is one line of input. Without a body it has none. With an op it is the begin (storm) or the end (calm) of load on
// the collection at the URL, of objects like the body.
type request struct {
	Op     string          `json:"op"`
	Method string          `json:"method"`
	URL    string          `json:"url"`
	Body   json.RawMessage `json:"body"`
}

// answer is one line of output. Error is set when there was no response; then Status is 0.
type answer struct {
	Status int    `json:"status"`
	Body   string `json:"body"`
	Error  string `json:"error,omitempty"`
	Storm  *tally `json:"storm,omitempty"`
}

func serveClient(dir string) error {
	if err := writeCertificates(dir); err != nil {
		return err
	}
	identity, err := tls.LoadX509KeyPair(filepath.Join(dir, "client.crt"), filepath.Join(dir, "client.key"))
	if err != nil {
		return err
	}
	authority, err := os.ReadFile(filepath.Join(dir, "ca.crt"))
	if err != nil {
		return err
	}
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(authority)
	client := &http.Client{
		Timeout: 20 * time.Second,
		Transport: &http.Transport{
			MaxIdleConnsPerHost: 2 * workers,
			TLSClientConfig:     &tls.Config{RootCAs: roots, Certificates: []tls.Certificate{identity}},
		},
	}
	input, output := bufio.NewReader(os.Stdin), json.NewEncoder(os.Stdout)
	if err := output.Encode(answer{Body: "ready"}); err != nil {
		return err
	}
	storms := map[string]*storm{}
	for {
		line, err := input.ReadBytes('\n')
		if err != nil {
			return nil
		}
		var wanted request
		ans := answer{}
		if err := json.Unmarshal(line, &wanted); err != nil {
			ans.Error = err.Error()
		} else {
			ans = do(client, storms, wanted)
		}
		if err := output.Encode(ans); err != nil {
			return err
		}
	}
}

// do is the table of operations.
func do(client *http.Client, storms map[string]*storm, wanted request) answer {
	switch wanted.Op {
	case "":
		return send(client, wanted)
	case "storm":
		storms[wanted.URL] = startStorm(client, wanted)
		return answer{}
	case "calm":
		st, ok := storms[wanted.URL]
		if !ok {
			return answer{Error: "there is no storm on " + wanted.URL}
		}
		delete(storms, wanted.URL)
		counted := st.stop()
		return answer{Storm: &counted}
	default:
		return answer{Error: "unknown operation " + wanted.Op}
	}
}

func send(client *http.Client, wanted request) answer {
	req, err := http.NewRequest(wanted.Method, wanted.URL, bytes.NewReader(wanted.Body))
	if err != nil {
		return answer{Error: err.Error()}
	}
	req.Header.Set("Content-Type", "application/json")
	response, err := client.Do(req)
	if err != nil {
		return answer{Error: err.Error()}
	}
	defer response.Body.Close()
	body, err := io.ReadAll(response.Body)
	if err != nil {
		return answer{Error: err.Error()}
	}
	return answer{Status: response.StatusCode, Body: string(body)}
}
