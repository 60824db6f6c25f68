// What kube-apiserver does with --encryption-provider-config and --encryption-provider-config-automatic-reload=true:
// load the file once, and let the controller of the library watch it.
package main

import (
	"context"
	"errors"
	"net/http"
	"time"

	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apiserver/pkg/server/options/encryptionconfig"
	encryptionconfigcontroller "k8s.io/apiserver/pkg/server/options/encryptionconfig/controller"
	"k8s.io/apiserver/pkg/storage/value"
)

// serverID is what kube-apiserver derives from its host and address; it only ends up, hashed, in metrics.
const serverID = "kube-apiserver-under-test"

// driver is the process: one server, and the load on it.
type driver struct {
	ctx    context.Context
	server *server
	storm  *storm
}

// server is the storage side of one API server.
type server struct {
	transformers *encryptionconfig.DynamicTransformers
	secrets      value.Transformer
}

// load is done once for each process, as in kube-apiserver. A plugin that is not there is no error.
func (d *driver) load(path string, pollMS int) error {
	if d.server != nil {
		return errors.New("already loaded: an API server that starts again is another process")
	}
	// The library exposes this for tests. It is only how often the file is looked at.
	encryptionconfigcontroller.EncryptionConfigFileChangePollDuration = time.Duration(pollMS) * time.Millisecond
	closing, closeTransformers := context.WithCancel(d.ctx)
	loaded, err := encryptionconfig.LoadEncryptionConfig(closing, path, true, serverID)
	if err != nil {
		closeTransformers()
		return err
	}
	if len(loaded.HealthChecks) != 1 {
		closeTransformers()
		return errors.New("with reload on there is one health check")
	}
	transformers := encryptionconfig.NewDynamicTransformers(
		loaded.Transformers, loaded.HealthChecks[0], closeTransformers, loaded.KMSCloseGracePeriod)
	controller := encryptionconfigcontroller.NewDynamicEncryptionConfiguration(
		"reload", path, transformers, loaded.EncryptionFileContentHash, serverID)
	go controller.Run(d.ctx)
	secrets := transformers.TransformerForResource(schema.GroupResource{Resource: "secrets"})
	d.server = &server{transformers: transformers, secrets: secrets}
	return nil
}

// write makes the values for etcd, as a create does.
func (s *server) write(ctx context.Context, objects []object) []result {
	results := make([]result, 0, len(objects))
	for _, o := range objects {
		stored, err := s.secrets.TransformToStorage(ctx, o.Data, value.DefaultContext(o.Key))
		results = append(results, outcome(stored, false, err))
	}
	return results
}

// read makes the objects of values from etcd, as a get or a list does.
func (s *server) read(ctx context.Context, objects []object) []result {
	results := make([]result, 0, len(objects))
	for _, o := range objects {
		plain, stale, err := s.secrets.TransformFromStorage(ctx, o.Data, value.DefaultContext(o.Key))
		results = append(results, outcome(plain, stale, err))
	}
	return results
}

// readyz is the check kms-providers: "ok", or what is wrong.
func (s *server) readyz(ctx context.Context) string {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "/readyz/"+s.transformers.Name(), nil)
	if err != nil {
		return err.Error()
	}
	if err := s.transformers.Check(req); err != nil {
		return err.Error()
	}
	return "ok"
}

func outcome(data []byte, stale bool, err error) result {
	if err != nil {
		return result{Error: err.Error()}
	}
	return result{Data: data, Stale: stale}
}
