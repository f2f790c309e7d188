package h2kvmctl

import (
	"reflect"
	"testing"

	"github.com/hyper2kvm/hyper2kvm/daemon/models"
	"github.com/hyper2kvm/hyper2kvm/internal/jsondoc"
)

const jsonDoc = "../../../docs/json.md"

// TestDocument: what -json prints and the API answers is described, all of it.
func TestDocument(t *testing.T) {
	doc, err := jsondoc.Read(jsonDoc)
	if err != nil {
		t.Fatal(err)
	}
	known := map[reflect.Type]string{
		reflect.TypeFor[models.Job](): "job", reflect.TypeFor[models.Result](): "result",
		reflect.TypeFor[models.VM](): "virtual-machine", reflect.TypeFor[models.LogLine](): "line",
	}
	for section, typ := range map[string]reflect.Type{
		"job": reflect.TypeFor[models.Job](), "result": reflect.TypeFor[models.Result](), "submission": reflect.TypeFor[submission](),
		"jobs": reflect.TypeFor[models.QueryResponse](), "status": reflect.TypeFor[models.DaemonStatus](), "limits": reflect.TypeFor[models.Limits](),
		"cancellation": reflect.TypeFor[models.CancelResponse](), "retry": reflect.TypeFor[models.RetryResponse](),
		"log": reflect.TypeFor[models.LogsResponse](), "line": reflect.TypeFor[models.LogLine](), "event": reflect.TypeFor[models.Event](),
		"virtual-machines": reflect.TypeFor[models.VMList](), "virtual-machine": reflect.TypeFor[models.VM](), "error": reflect.TypeFor[models.ErrorResponse](),
	} {
		for _, diff := range doc.Compare(section, typ, known) {
			t.Error(diff)
		}
	}
}
