package jobs

import (
	"reflect"
	"testing"

	"github.com/hyper2kvm/hyper2kvm/daemon/models"
)

// TestEveryOptionHasADefault: an option that is added to the model and
// forgotten here would be ignored in the daemon's configuration.
func TestEveryOptionHasADefault(t *testing.T) {
	given := reflect.ValueOf(withDefaults(models.Options{}, builtin()))
	for i := range given.NumField() {
		if given.Field(i).IsNil() {
			t.Errorf("option %s has no default, or it is not filled in", given.Type().Field(i).Name)
		}
	}
}
