package runner_test

import (
	"log/slog"
	"net/url"
	"strings"
	"testing"

	"github.com/hyper2kvm/hyper2kvm/daemon/jobs"
	"github.com/hyper2kvm/hyper2kvm/daemon/models"
	"github.com/hyper2kvm/hyper2kvm/internal/runner"
	"github.com/hyper2kvm/hyper2kvm/vsphere"
)

// TestAdviceNamesTheSettings: advice speaks of the place where the settings of
// the vCenter are, not of variables that nobody has set.
func TestAdviceNamesTheSettings(t *testing.T) {
	nobody := &url.URL{Scheme: "https", Host: "127.0.0.1:1"}
	r := runner.New(runner.Options{
		Default: func() (vsphere.Config, error) { return vsphere.Config{URL: nobody, Username: "u"}, nil },
		Named:   map[string]vsphere.Config{"berlin": {URL: nobody, Username: "u"}}, Logger: slog.New(slog.DiscardHandler),
	})
	for name, tc := range map[string]struct {
		vcenter *models.VCenter
		want    string
	}{
		"default": {nil, "GOVC_URL"},
		"named":   {&models.VCenter{Name: "berlin"}, `check host and port in server, and that nothing in between blocks them (of vCenter "berlin" in the daemon's configuration)`},
		"own":     {&models.VCenter{Server: "127.0.0.1:1", Username: "u", Password: "p"}, "in server, and that nothing in between blocks them (of the job's vcenter)"},
	} {
		_, err := r.Run(t.Context(), jobs.Spec{Definition: models.Definition{VMPath: "/a", OutputPath: t.TempDir(), VCenter: tc.vcenter}}, nil)
		if err == nil || !strings.Contains(err.Error(), tc.want) || tc.vcenter != nil && strings.Contains(err.Error(), "GOVC_") {
			t.Errorf("%s: %v", name, err)
		}
	}
	if _, err := r.ListVMs(t.Context(), "berlin"); err == nil || strings.Contains(err.Error(), "GOVC_") {
		t.Errorf("the list: %v", err)
	}
}
