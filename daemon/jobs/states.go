package jobs

import (
	"fmt"
	"slices"

	"github.com/hyper2kvm/hyper2kvm/daemon/models"
)

// transitions is the life of a job, all of it.
var transitions = map[models.Status][]models.Status{
	models.Pending: {models.Running, models.Cancelled},
	// Back to pending: the daemon stopped while it ran, or its host was busy.
	models.Running: {models.Completed, models.Failed, models.Cancelled, models.Pending},
	// A retry.
	models.Failed:    {models.Pending},
	models.Cancelled: {models.Pending},
}

// checkTransition fails unless a job may go from one status to the other.
func checkTransition(from, to models.Status) error {
	if !slices.Contains(transitions[from], to) {
		return fmt.Errorf("change job: %s cannot become %s", from, to)
	}
	return nil
}
