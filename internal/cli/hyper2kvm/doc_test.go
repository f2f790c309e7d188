package hyper2kvm

import (
	"reflect"
	"testing"

	"github.com/hyper2kvm/hyper2kvm/internal/convert"
	"github.com/hyper2kvm/hyper2kvm/internal/jsondoc"
	"github.com/hyper2kvm/hyper2kvm/internal/output"
)

// TestDocument: what -json prints and what the receipt holds is described, all
// of it.
func TestDocument(t *testing.T) {
	doc, err := jsondoc.Read("../../../docs/json.md")
	if err != nil {
		t.Fatal(err)
	}
	known := map[reflect.Type]string{reflect.TypeFor[output.VM](): "source", reflect.TypeFor[output.File](): "file"}
	for section, typ := range map[string]reflect.Type{
		"inspection": reflect.TypeFor[vmFacts](), "conversion": reflect.TypeFor[convert.Result](), "verification": reflect.TypeFor[output.VerifyReport](),
		"receipt": reflect.TypeFor[output.Receipt](), "file": reflect.TypeFor[output.File](), "source": reflect.TypeFor[output.VM](),
	} {
		for _, diff := range doc.Compare(section, typ, known) {
			t.Error(diff)
		}
	}
}
