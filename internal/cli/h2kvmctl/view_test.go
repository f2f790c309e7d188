package h2kvmctl

import (
	"slices"
	"testing"
	"time"

	"github.com/hyper2kvm/hyper2kvm/daemon/models"
)

func TestBusyFirst(t *testing.T) {
	job := func(id string, s models.Status, minute int) models.Job {
		return models.Job{ID: id, Status: s, CreatedAt: time.Date(2026, 1, 1, 0, minute, 0, 0, time.UTC)}
	}
	in := []models.Job{
		job("old", models.Completed, 0), job("late", models.Pending, 9), job("next", models.Pending, 3), job("broken", models.Failed, 1),
		job("second", models.Running, 5), job("first", models.Running, 2),
	}
	var got []string
	for _, j := range busyFirst(in) {
		got = append(got, j.ID)
	}
	if want := []string{"first", "second", "next", "late", "broken", "old"}; !slices.Equal(got, want) || in[0].ID != "old" {
		t.Errorf("%v, want %v", got, want)
	}
}
