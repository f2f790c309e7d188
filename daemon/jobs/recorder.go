package jobs

import (
	"context"
	"log/slog"
	"time"

	"github.com/hyper2kvm/hyper2kvm/daemon/models"
)

const (
	// recordEvery is how long an event may wait for others to be stored with.
	recordEvery = 200 * time.Millisecond
	// recordBatch is how many events are stored at once.
	recordBatch = 512
	// recordQueue is how many events may wait. When the store cannot keep up,
	// who reports waits, instead of losing a line.
	recordQueue = 4096
)

// recorder stores changes of state and log lines as they are published, in
// batches: a transaction for each line would keep the disk busy. One goroutine
// stores; close ends it when all is stored.
type recorder struct {
	store Store
	log   *slog.Logger
	queue chan models.Event
	sync  chan chan struct{}
	quit  chan struct{} // closed by close
	done  chan struct{} // closed when all is stored
}

func newRecorder(s Store, log *slog.Logger) *recorder {
	r := &recorder{store: s, log: log, queue: make(chan models.Event, recordQueue), sync: make(chan chan struct{}), quit: make(chan struct{}), done: make(chan struct{})}
	go r.run()
	return r
}

// add queues an event. After close it may be lost.
func (r *recorder) add(e models.Event) {
	select {
	case r.queue <- e:
	case <-r.quit:
	}
}

// flush returns when everything queued before is stored, or ctx ends.
func (r *recorder) flush(ctx context.Context) {
	stored := make(chan struct{})
	select {
	case r.sync <- stored:
	case <-r.done:
		return
	case <-ctx.Done():
		return
	}
	select {
	case <-stored:
	case <-ctx.Done():
	}
}

// close stores what is queued and ends the recorder.
func (r *recorder) close() {
	close(r.quit)
	<-r.done
}

func (r *recorder) run() {
	defer close(r.done)
	var batch []models.Event
	var timer <-chan time.Time
	for {
		select {
		case e := <-r.queue:
			if batch = append(batch, e); len(batch) == 1 {
				timer = time.After(recordEvery)
			}
			if len(batch) < recordBatch {
				continue
			}
		case <-timer:
		case stored := <-r.sync:
			r.write(r.drain(batch))
			batch, timer = nil, nil
			close(stored)
			continue
		case <-r.quit:
			r.write(r.drain(batch))
			return
		}
		r.write(batch)
		batch, timer = nil, nil
	}
}

// drain adds to a batch what is queued.
func (r *recorder) drain(batch []models.Event) []models.Event {
	for n := len(r.queue); n > 0; n-- {
		batch = append(batch, <-r.queue)
	}
	return batch
}

// write stores one batch. Events that the store refuses are lost, and that is
// said: the state of a job is kept apart from them.
func (r *recorder) write(batch []models.Event) {
	if len(batch) == 0 {
		return
	}
	ctx, cancel := context.WithTimeout(context.Background(), storeTimeout)
	defer cancel()
	if err := r.store.Append(ctx, batch); err != nil {
		r.log.Error("could not store events of jobs", slog.Int("events", len(batch)), slog.String("error", err.Error()))
	}
}
