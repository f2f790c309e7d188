package hyper2kvmd

import (
	"reflect"
	"testing"

	"github.com/hyper2kvm/hyper2kvm/internal/jsondoc"
)

// TestDocument: what -json prints is described, all of it.
func TestDocument(t *testing.T) {
	doc, err := jsondoc.Read("../../../docs/json.md")
	if err != nil {
		t.Fatal(err)
	}
	for _, diff := range doc.Compare("tokens", reflect.TypeFor[tokenList](), nil) {
		t.Error(diff)
	}
}
