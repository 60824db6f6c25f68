// Command extension is a whole API server, k8s.io/apiextensions-apiserver, and what is needed to speak with it.
//
//	extension serve FLAGS...   is apiextensions-apiserver itself
//	extension client DIR       writes certificates into DIR, says so with one line, and then sends HTTP requests: JSON
//	                           lines on standard input, one JSON line each on standard output; and load (storm.go); ends with its input
package main

import (
	"fmt"
	"os"
	"time"

	"k8s.io/apiextensions-apiserver/pkg/cmd/server"
	genericapiserver "k8s.io/apiserver/pkg/server"
	encryptionconfigcontroller "k8s.io/apiserver/pkg/server/options/encryptionconfig/controller"
	"k8s.io/component-base/cli"
)

func main() {
	if len(os.Args) < 3 {
		fmt.Fprintln(os.Stderr, "usage: extension serve FLAGS... | extension client DIR")
		os.Exit(2)
	}
	switch os.Args[1] {
	case "serve":
		// The library exposes this for tests. It is only how often the file is looked at: once a minute otherwise.
		if poll, err := time.ParseDuration(os.Getenv("ENCRYPTION_CONFIG_POLL")); err == nil {
			encryptionconfigcontroller.EncryptionConfigFileChangePollDuration = poll
		}
		command := server.NewServerCommand(genericapiserver.SetupSignalContext(), os.Stdout, os.Stderr)
		command.SetArgs(os.Args[2:])
		os.Exit(cli.Run(command))
	case "client":
		if err := serveClient(os.Args[2]); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
	default:
		os.Exit(2)
	}
}
