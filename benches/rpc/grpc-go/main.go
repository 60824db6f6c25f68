// A KMS v2 plugin that does nothing but seal, on grpc-go: what `make bench-rpc` compares kube-kms with.
//
// The messages are k8s.io/kms's own. Every answer has the key_id and the annotations of a template (an answer of kube-kms
// in the same run), so that the bytes on the socket have the same sizes; the ciphertext is AES-256-GCM of Go's library under
// one key, with a nonce from the operating system. No log, no metrics, no checks.
package main

import (
	"context"
	"crypto/aes"
	"crypto/cipher"
	"crypto/rand"
	"errors"
	"flag"
	"log"
	"net"
	"os"
	"os/signal"
	"syscall"

	"google.golang.org/grpc"
	"google.golang.org/protobuf/proto"
	kms "k8s.io/kms/apis/v2"
)

type plugin struct {
	kms.UnimplementedKeyManagementServiceServer
	seal     cipher.AEAD
	template *kms.EncryptResponse
}

var aad = make([]byte, 32)

func (p *plugin) Status(context.Context, *kms.StatusRequest) (*kms.StatusResponse, error) {
	return &kms.StatusResponse{Version: "v2", Healthz: "ok", KeyId: p.template.KeyId}, nil
}

func (p *plugin) Encrypt(_ context.Context, in *kms.EncryptRequest) (*kms.EncryptResponse, error) {
	size := p.seal.NonceSize()
	sealed := make([]byte, size, len(p.template.Ciphertext)+len(in.Plaintext)+size+p.seal.Overhead())
	if _, err := rand.Read(sealed); err != nil {
		return nil, err
	}
	sealed = p.seal.Seal(sealed, sealed[:size], in.Plaintext, aad)
	// As long as the template's, when that has a header before the nonce.
	for len(sealed) < len(p.template.Ciphertext) {
		sealed = append(sealed, 0)
	}
	return &kms.EncryptResponse{Ciphertext: sealed, KeyId: p.template.KeyId, Annotations: p.template.Annotations}, nil
}

func (p *plugin) Decrypt(_ context.Context, in *kms.DecryptRequest) (*kms.DecryptResponse, error) {
	size := p.seal.NonceSize()
	if len(in.Ciphertext) < size {
		return nil, errors.New("too short")
	}
	opened, err := p.seal.Open(nil, in.Ciphertext[:size], in.Ciphertext[size:], aad)
	if err != nil {
		return nil, err
	}
	return &kms.DecryptResponse{Plaintext: opened}, nil
}

func main() {
	socket := flag.String("socket", "", "where to listen")
	template := flag.String("template", "", "a file with an EncryptResponse")
	workers := flag.Uint("stream-workers", 0, "grpc.NumStreamWorkers")
	version := flag.Bool("version", false, "print grpc-go's version and end")
	flag.Parse()
	if *version {
		os.Stdout.WriteString(grpc.Version + "\n")
		return
	}
	bytes, err := os.ReadFile(*template)
	if err != nil {
		log.Fatal(err)
	}
	p := &plugin{template: &kms.EncryptResponse{}}
	if err := proto.Unmarshal(bytes, p.template); err != nil {
		log.Fatal(err)
	}
	key := make([]byte, 32)
	if _, err := rand.Read(key); err != nil {
		log.Fatal(err)
	}
	block, err := aes.NewCipher(key)
	if err != nil {
		log.Fatal(err)
	}
	if p.seal, err = cipher.NewGCM(block); err != nil {
		log.Fatal(err)
	}
	listener, err := net.Listen("unix", *socket)
	if err != nil {
		log.Fatal(err)
	}
	var options []grpc.ServerOption
	if *workers > 0 {
		options = append(options, grpc.NumStreamWorkers(uint32(*workers)))
	}
	server := grpc.NewServer(options...)
	kms.RegisterKeyManagementServiceServer(server, p)
	stop := make(chan os.Signal, 1)
	signal.Notify(stop, syscall.SIGTERM)
	go func() {
		<-stop
		server.Stop()
	}()
	if err := server.Serve(listener); err != nil {
		log.Fatal(err)
	}
}
