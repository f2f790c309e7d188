// Package models holds the wire types of the REST API: what the daemon
// answers, what clients send, and the states of a job. It imports the standard
// library only, so that api, client and jobs can share it.
package models

import "time"

// Version is the version of the product and of the API.
const Version = "1.0.0"

// Status is the state of a job.
type Status string

// The states. Pending and running jobs can still change; the others are final.
const (
	Pending   Status = "pending"
	Running   Status = "running"
	Completed Status = "completed"
	Failed    Status = "failed"
	Cancelled Status = "cancelled"
)

// Final reports whether a job in this state can no longer change.
func (s Status) Final() bool {
	return s == Completed || s == Failed || s == Cancelled
}

// Valid reports whether s is one of the five states.
func (s Status) Valid() bool {
	return s == Pending || s == Running || s.Final()
}

// Format is the kind of files an export produces.
type Format string

// The formats a job may ask for.
const (
	OVF   Format = "ovf"
	OVA   Format = "ova"
	QCOW2 Format = "qcow2"
	Raw   Format = "raw"
)

// Hardware is what a VM made of disk images is given on KVM.
type Hardware string

// The choices: the emulated counterparts of VMware's devices, with which the
// guest starts unchanged, or KVM's own, whose drivers it must have.
const (
	SameHardware   Hardware = "same"
	VirtioHardware Hardware = "virtio"
)

// VCenter says which vCenter a job talks to: the Name of one the daemon's
// configuration knows, or a server with credentials. The password never
// leaves the process: it is not marshalled.
type VCenter struct {
	Name     string `json:"name,omitempty"`
	Server   string `json:"server,omitempty"`
	Username string `json:"username,omitempty"`
	Password string `json:"-"`
	Insecure *bool  `json:"insecure,omitempty"`
}

// Options are a job's options. A nil field was not given and takes the
// daemon's default.
type Options struct {
	ParallelDownloads      *int    `json:"parallel_downloads,omitempty"`
	RemoveCDROM            *bool   `json:"remove_cdrom,omitempty"`
	ShowIndividualProgress *bool   `json:"show_individual_progress,omitempty"`
	Format                 *Format `json:"format,omitempty"`
	Compress               *bool   `json:"compress,omitempty"`
	Snapshot               *bool   `json:"snapshot,omitempty"`
	Shutdown               *bool   `json:"shutdown,omitempty"`
	IncludeMedia           *bool   `json:"include_media,omitempty"`
	Overwrite              *bool   `json:"overwrite,omitempty"`
	SkipSpaceCheck         *bool   `json:"skip_space_check,omitempty"`
	// KeepVMDK stores the host's streams beside the images made of them.
	KeepVMDK *bool `json:"keep_vmdk,omitempty"`
	// VerifyGrains inflates and checks every grain, also where the host's hash
	// proves the disk.
	VerifyGrains *bool     `json:"verify_grains,omitempty"`
	Hardware     *Hardware `json:"hardware,omitempty"`
	// NVMe keeps NVMe disks on an NVMe controller, which libvirt has since 11.5.
	NVMe *bool `json:"nvme,omitempty"`
	// Networks gives for names of VMware networks what their adapters are
	// plugged into on KVM: BRIDGE, bridge:BRIDGE or network:NETWORK; the name
	// * stands for all others.
	Networks map[string]string `json:"networks,omitempty"`
	// Priority decides among waiting jobs: a higher one goes first.
	Priority *int `json:"priority,omitempty"`
	// Bandwidth bounds what the job's streams take together. In JSON it is a
	// number.
	Bandwidth *Bandwidth `json:"bandwidth,omitempty"`
}

// Definition is a job as it was asked for, with the daemon's defaults filled
// in once it has been accepted.
type Definition struct {
	Name       string   `json:"name,omitempty"`
	VMPath     string   `json:"vm_path"`
	OutputPath string   `json:"output_path"`
	Options    Options  `json:"options"`
	VCenter    *VCenter `json:"vcenter,omitempty"`
}

// VCenterName is how programs call the job's vCenter: its name in the daemon's
// configuration, "default" for the one of the environment, and "own" for one
// that came with the job.
func (d Definition) VCenterName() string {
	switch {
	case d.VCenter == nil:
		return "default"
	case d.VCenter.Name == "":
		return "own"
	}
	return d.VCenter.Name
}

// FileProgress is one file's share of a job's progress. Position and Capacity
// are bytes of the guest's disk; Bytes are bytes of the stream.
type FileProgress struct {
	Name     string `json:"name"`
	State    string `json:"state"`
	Position int64  `json:"position"`
	Capacity int64  `json:"capacity"`
	Bytes    int64  `json:"bytes"`
	Attempt  int    `json:"attempt"`
	Problem  string `json:"problem,omitempty"`
}

// Progress is where a job stands. PercentComplete comes from the position in
// the disks; TotalBytes is an upper bound of BytesDownloaded until every
// stream has ended, and exact from then on.
type Progress struct {
	Phase              string         `json:"phase"`
	CurrentFile        string         `json:"current_file"`
	FilesDownloaded    int            `json:"files_downloaded"`
	TotalFiles         int            `json:"total_files"`
	BytesDownloaded    int64          `json:"bytes_downloaded"`
	TotalBytes         int64          `json:"total_bytes"`
	PercentComplete    float64        `json:"percent_complete"`
	BytesPerSecond     int64          `json:"bytes_per_second"`
	EstimatedRemaining string         `json:"estimated_remaining"` // Go duration, empty while unknown
	Files              []FileProgress `json:"files"`
}

// Result is what a completed job left behind.
type Result struct {
	VMName    string `json:"vm_name"`
	OutputDir string `json:"output_dir"`
	OVFPath   string `json:"ovf_path"` // of the archive that holds it, for an OVA
	// DomainPath is the libvirt domain that virsh define takes; empty unless
	// the disks became images.
	DomainPath string   `json:"domain_path,omitempty"`
	Files      []string `json:"files"` // absolute paths
	TotalSize  int64    `json:"total_size"`
	Duration   string   `json:"duration"` // Go duration
	// Verified reports whether every disk agreed with the hash in the host's
	// manifest. False does not mean damaged: the host gave no hash.
	Verified bool     `json:"verified"`
	Warnings []string `json:"warnings,omitempty"`
	// Notes say what the libvirt domain could not carry over.
	Notes []string `json:"notes,omitempty"`
}

// Job is one export, from its submission to its end. All times are UTC.
type Job struct {
	ID          string     `json:"id"`
	Definition  Definition `json:"definition"`
	Status      Status     `json:"status"`
	Progress    *Progress  `json:"progress,omitempty"`
	Result      *Result    `json:"result,omitempty"`
	Error       string     `json:"error,omitempty"`
	CreatedAt   time.Time  `json:"created_at"`
	StartedAt   *time.Time `json:"started_at,omitempty"`
	CompletedAt *time.Time `json:"completed_at,omitempty"`
	UpdatedAt   time.Time  `json:"updated_at"`
}

// Priority is the job's among those that wait; 0 unless it was asked for.
func (j Job) Priority() int {
	if p := j.Definition.Options.Priority; p != nil {
		return *p
	}
	return 0
}

// Health answers GET /health.
type Health struct {
	Status    string    `json:"status"`
	Timestamp time.Time `json:"timestamp"`
}

// DaemonStatus answers GET /status.
type DaemonStatus struct {
	Version       string    `json:"version"`
	Uptime        string    `json:"uptime"` // Go duration, whole seconds
	TotalJobs     int       `json:"total_jobs"`
	PendingJobs   int       `json:"pending_jobs"`
	RunningJobs   int       `json:"running_jobs"`
	CompletedJobs int       `json:"completed_jobs"`
	FailedJobs    int       `json:"failed_jobs"`
	CancelledJobs int       `json:"cancelled_jobs"`
	Timestamp     time.Time `json:"timestamp"`
}

// SubmitResponse answers POST /jobs/submit. Each error names the job it
// belongs to, and the line and key where there is one.
type SubmitResponse struct {
	JobIDs    []string  `json:"job_ids"`
	Accepted  int       `json:"accepted"`
	Rejected  int       `json:"rejected"`
	Errors    []string  `json:"errors"`
	Timestamp time.Time `json:"timestamp"`
}

// QueryRequest asks POST /jobs/query for jobs by id, by status, or all. A
// Limit of 0 means no limit; otherwise the newest Limit jobs are given.
type QueryRequest struct {
	JobIDs []string `json:"job_ids,omitempty"`
	Status []Status `json:"status,omitempty"`
	All    bool     `json:"all,omitempty"`
	Limit  int      `json:"limit,omitempty"`
}

// QueryResponse answers POST /jobs/query. Total counts the jobs that matched
// before the limit.
type QueryResponse struct {
	Jobs      []Job     `json:"jobs"`
	Total     int       `json:"total"`
	Timestamp time.Time `json:"timestamp"`
}

// CancelRequest asks POST /jobs/cancel to stop jobs.
type CancelRequest struct {
	JobIDs []string `json:"job_ids"`
}

// CancelResponse answers POST /jobs/cancel: the jobs that are stopping or
// stopped, those that could not be cancelled, and why.
type CancelResponse struct {
	Cancelled []string          `json:"cancelled"`
	Failed    []string          `json:"failed"`
	Errors    map[string]string `json:"errors"`
	Timestamp time.Time         `json:"timestamp"`
}

// RetryRequest names the jobs to put back into the queue.
type RetryRequest struct {
	JobIDs []string `json:"job_ids"`
}

// RetryResponse answers it; Errors says by id why a job could not be.
type RetryResponse struct {
	Retried   []string          `json:"retried"`
	Failed    []string          `json:"failed"`
	Errors    map[string]string `json:"errors"`
	Timestamp time.Time         `json:"timestamp"`
}

// LogLine is one line of a job's log. Level is INFO, WARN, ERROR or DEBUG;
// Attrs holds what stands after the bar, as key=value pairs.
type LogLine struct {
	Time    time.Time `json:"time"`
	Level   string    `json:"level"`
	Message string    `json:"message"`
	Attrs   string    `json:"attrs,omitempty"`
}

// LogsResponse answers GET /jobs/{id}/logs.
type LogsResponse struct {
	JobID string    `json:"job_id"`
	Lines []LogLine `json:"lines"`
}

// EventType says what an Event tells.
type EventType string

// The types of events. A state event is sent when a job is submitted and
// whenever its status changes; a progress event when only numbers moved.
const (
	StateEvent    EventType = "state"
	ProgressEvent EventType = "progress"
	LogEvent      EventType = "log"
)

// Event is one server-sent event. ID rises by one with each event of the
// daemon's process. Job is set for state and progress events, Log for log
// events.
type Event struct {
	ID    uint64    `json:"id"`
	Type  EventType `json:"type"`
	JobID string    `json:"job_id"`
	Time  time.Time `json:"time"`
	Job   *Job      `json:"job,omitempty"`
	Log   *LogLine  `json:"log,omitempty"`
}

// VM is one row of GET /vms. Sizes are bytes.
type VM struct {
	Path       string `json:"path"`
	Name       string `json:"name"`
	MoRef      string `json:"moref"`
	UUID       string `json:"uuid,omitempty"`
	PowerState string `json:"power_state"`
	GuestOS    string `json:"guest_os,omitempty"`
	CPUs       int    `json:"cpus"`
	MemoryMB   int    `json:"memory_mb"`
	Storage    int64  `json:"storage_bytes"`
	Template   bool   `json:"template"`
	Snapshots  bool   `json:"snapshots"`
	Firmware   string `json:"firmware,omitempty"`
}

// VMList answers GET /vms.
type VMList struct {
	VMs       []VM      `json:"vms"`
	Total     int       `json:"total"`
	Timestamp time.Time `json:"timestamp"`
}

// ErrorDetail is the body of every error answer. Code is a stable word for
// programs, Message a sentence for people, Details what to do next or where
// the fault lies.
type ErrorDetail struct {
	Code    string `json:"code"`
	Message string `json:"message"`
	Details string `json:"details,omitempty"`
}

// ErrorResponse wraps ErrorDetail.
type ErrorResponse struct {
	Error ErrorDetail `json:"error"`
}
