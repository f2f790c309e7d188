package api

import (
	_ "embed" // for openapi.yaml
	"fmt"
	"net/http"
)

// openapi describes the API. Tests compare it with what the handlers answer.
//
//go:embed openapi.yaml
var openapi []byte

// description serves openapi.yaml.
func (a *api) description(w http.ResponseWriter, _ *http.Request) (any, error) {
	w.Header().Set("Content-Type", "application/yaml")
	if _, err := w.Write(openapi); err != nil {
		return nil, fmt.Errorf("write the description: %w", err)
	}
	return nil, nil
}
