package memory

import (
	"fmt"
	"testing"

	"github.com/hyper2kvm/hyper2kvm/daemon/models"
	"github.com/hyper2kvm/hyper2kvm/daemon/store"
	"github.com/hyper2kvm/hyper2kvm/daemon/store/storetest"
)

func TestConformance(t *testing.T) {
	storetest.Run(t, func(*testing.T) store.Store { return New(0) })
}

// TestForget: of the ended jobs the newest are kept, and every unfinished one.
func TestForget(t *testing.T) {
	s := New(10)
	for i := range 40 {
		id := fmt.Sprintf("%03d", i)
		if err := s.Insert(t.Context(), storetest.Record(id)); err != nil {
			t.Fatal(err)
		}
		if i == 0 {
			continue // stays pending
		}
		if _, err := s.Transition(t.Context(), id, models.Pending, models.Cancelled, nil); err != nil {
			t.Fatal(err)
		}
	}
	recs, err := s.Load(t.Context(), store.Filter{})
	if err != nil {
		t.Fatal(err)
	}
	count, err := s.Count(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if len(recs) < 11 || len(recs) > 12 || recs[0].Job.ID != "000" || recs[len(recs)-1].Job.ID != "039" || count[models.Cancelled] != len(recs)-1 {
		t.Errorf("%d records from %s to %s, count %v", len(recs), recs[0].Job.ID, recs[len(recs)-1].Job.ID, count)
	}
}
