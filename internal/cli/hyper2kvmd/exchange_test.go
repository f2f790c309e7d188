package hyper2kvmd

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"testing"

	"github.com/hyper2kvm/hyper2kvm/daemon/jobs"
	"github.com/hyper2kvm/hyper2kvm/daemon/models"
	"github.com/hyper2kvm/hyper2kvm/progress"
	"github.com/hyper2kvm/hyper2kvm/vsphere"
)

// hand is a worker that says who it is and whether it has been closed.
type hand struct {
	name    string
	release chan struct{}
	closed  bool
}

func (h *hand) Run(context.Context, jobs.Spec, progress.Sink) (models.Result, error) {
	<-h.release
	return models.Result{VMName: h.name}, nil
}

func (h *hand) ListVMs(context.Context, string) ([]models.VM, error) {
	return []models.VM{{Name: h.name}}, nil
}

func (h *hand) Close() error {
	h.closed = true
	return errors.New("no answer")
}

// TestExchange: a job goes on with the vCenters it began with, and the last
// one out closes them.
func TestExchange(t *testing.T) {
	var out bytes.Buffer
	var hands []*hand
	e := &exchange{log: slog.New(slog.NewTextHandler(&out, nil)), fresh: func(named map[string]vsphere.Config) worker {
		h := &hand{release: make(chan struct{})}
		for h.name = range named {
		}
		hands = append(hands, h)
		return h
	}}
	first, second := map[string]vsphere.Config{"one": {Username: "a"}}, map[string]vsphere.Config{"two": {Username: "a"}}
	e.use(first)
	w, done := e.begin()
	e.use(map[string]vsphere.Config{"one": {Username: "a"}})
	if len(hands) != 1 {
		t.Error("the same vCenters were exchanged")
	}
	e.use(second)
	if len(hands) != 2 || hands[0].closed {
		t.Fatalf("%d workers, the first in use closed: %v", len(hands), hands[0].closed)
	}
	if vms, err := e.ListVMs(t.Context(), ""); err != nil || vms[0].Name != "two" {
		t.Errorf("list: %v, %v", vms, err)
	}
	close(hands[0].release)
	if r, err := w.Run(t.Context(), jobs.Spec{}, nil); err != nil || r.VMName != "one" {
		t.Errorf("run: %+v, %v", r, err)
	}
	done()
	if !hands[0].closed || hands[1].closed {
		t.Errorf("closed: %v %v", hands[0].closed, hands[1].closed)
	}
	close(hands[1].release)
	if r, err := e.Run(t.Context(), jobs.Spec{}, nil); err != nil || r.VMName != "two" {
		t.Errorf("run: %+v, %v", r, err)
	}
	e.close()
	if !hands[1].closed || bytes.Count(out.Bytes(), []byte("could not log out")) != 2 {
		t.Errorf("closed: %v\n%s", hands[1].closed, &out)
	}
}
