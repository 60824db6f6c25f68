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

// request is one line of input. Without a body it has none.
type request struct {
	Method string          `json:"method"`
	URL    string          `json:"url"`
	Body   json.RawMessage `json:"body"`
}

// answer is one line of output. Error is set when there was no response; then Status is 0.
type answer struct {
	Status int    `json:"status"`
	Body   string `json:"body"`
	Error  string `json:"error,omitempty"`
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
			TLSClientConfig: &tls.Config{RootCAs: roots, Certificates: []tls.Certificate{identity}},
		},
	}
	input, output := bufio.NewReader(os.Stdin), json.NewEncoder(os.Stdout)
	if err := output.Encode(answer{Body: "ready"}); err != nil {
		return err
	}
	for {
		line, err := input.ReadBytes('\n')
		if err != nil {
			return nil
		}
		if err := output.Encode(send(client, line)); err != nil {
			return err
		}
	}
}

func send(client *http.Client, line []byte) answer {
	var wanted request
	if err := json.Unmarshal(line, &wanted); err != nil {
		return answer{Error: err.Error()}
	}
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
