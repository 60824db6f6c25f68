// The API server's own metrics about the plugin: every series of apiserver_envelope_encryption_* and of the controller
// that reloads the file, as numbers with labels. A histogram is reduced to how many it counted.
package main

import (
	"strings"

	"k8s.io/component-base/metrics/legacyregistry"
)

// sample is one series.
type sample struct {
	Name   string            `json:"name"`
	Labels map[string]string `json:"labels"`
	Value  float64           `json:"value"`
}

func gather() ([]sample, error) {
	families, err := legacyregistry.DefaultGatherer.Gather()
	if err != nil {
		return nil, err
	}
	var samples []sample
	for _, family := range families {
		name := family.GetName()
		if !strings.HasPrefix(name, "apiserver_envelope_encryption_") && !strings.HasPrefix(name, "apiserver_encryption_config_") {
			continue
		}
		for _, metric := range family.GetMetric() {
			labels := map[string]string{}
			for _, pair := range metric.GetLabel() {
				labels[pair.GetName()] = pair.GetValue()
			}
			number := metric.GetCounter().GetValue() + metric.GetGauge().GetValue()
			if histogram := metric.GetHistogram(); histogram != nil {
				number = float64(histogram.GetSampleCount())
			}
			samples = append(samples, sample{Name: name, Labels: labels, Value: number})
		}
	}
	return samples, nil
}
