package fake

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"time"

	"github.com/armature-go/armature/examples/nova-mini/compute"
	"github.com/armature-go/armature/fault"
)

// The constant ext is the suffix of the name of a server's file. The constant half is the prefix of the name of an
// incomplete file. The constants counts, incoming and images are the names of directories.
const (
	ext, half = ".json", ".half-"
	counts    = "counts"
	incoming  = "incoming"
	images    = "images"
)

// server is one server, and the content of its file.
type server struct {
	compute.Instance

	Before   *compute.Resources `json:"before,omitempty"` // the size before an unconfirmed resize
	Image    string             `json:"image"`
	Metadata map[string]string  `json:"metadata,omitempty"`
	Started  time.Time          `json:"started"`
	Boots    int                `json:"boots"`
	// GuestData describes the data that the guest has received. It is empty if the server needs no data.
	GuestData string `json:"guest_data,omitempty"`
	// RescuePassword reports whether the data for the guest of a rescued server have a password of the rescue.
	RescuePassword bool `json:"rescue_password,omitempty"`
	// EphemeralGiB and SwapMiB are the sizes of the extra disks.
	EphemeralGiB int `json:"ephemeral_gib,omitempty"`
	SwapMiB      int `json:"swap_mib,omitempty"`
	// Interrupts is how often the guest got a non-maskable interrupt since it was created.
	Interrupts int `json:"interrupts,omitempty"`
	// Passwords is how often the password of the guest was set.
	Passwords int `json:"passwords,omitempty"`
}

var validID = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$`)

func checkID(id string) error {
	if !validID.MatchString(id) {
		return fault.New(fault.Invalid, "%q is not a server's id", id)
	}
	return nil
}

// loadServers reads the servers of the directory.
func (d *Driver) loadServers() error {
	if d.cfg.Dir == "" {
		return nil
	}
	for _, dir := range []string{d.cfg.Dir, filepath.Join(d.cfg.Dir, counts), filepath.Join(d.cfg.Dir, incoming), filepath.Join(d.cfg.Dir, images)} {
		if err := os.MkdirAll(dir, 0o750); err != nil {
			return fmt.Errorf("fake driver: %w", err)
		}
	}
	entries, err := os.ReadDir(d.cfg.Dir)
	if err != nil {
		return fmt.Errorf("fake driver: %w", err)
	}
	for _, e := range entries {
		path := filepath.Join(d.cfg.Dir, e.Name())
		switch {
		case strings.HasPrefix(e.Name(), half): // a driver was killed while it wrote this file
			err = os.Remove(path)
		case filepath.Ext(e.Name()) == ext:
			var s *server
			if s, err = readServer(path); err == nil {
				d.servers[s.ID] = s
			}
		}
		if err != nil {
			return fmt.Errorf("fake driver: %w", err)
		}
	}
	return nil
}

func readServer(path string) (*server, error) {
	raw, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	s := new(server)
	if err := json.Unmarshal(raw, s); err != nil {
		return nil, fmt.Errorf("read %s: %w", path, err)
	}
	return s, nil
}

// saveServer writes a server's file. If the process is killed, the file has either its old or its new content.
func saveServer(dir string, s *server) error {
	if dir == "" {
		return nil
	}
	raw, err := json.Marshal(s)
	if err != nil {
		return err
	}
	tmp := filepath.Join(dir, half+s.ID)
	if err := os.WriteFile(tmp, raw, 0o600); err != nil {
		return err
	}
	return os.Rename(tmp, filepath.Join(dir, s.ID+ext))
}

// receiveServers adds the servers that other hosts have sent.
func (d *Driver) receiveServers() error {
	if d.cfg.Dir == "" {
		return nil
	}
	dir := filepath.Join(d.cfg.Dir, incoming)
	info, err := os.Stat(dir)
	if err != nil || info.ModTime().Equal(d.received) {
		return err
	}
	entries, err := os.ReadDir(dir)
	if err != nil {
		return err
	}
	for _, e := range entries {
		if filepath.Ext(e.Name()) != ext || strings.HasPrefix(e.Name(), half) {
			continue
		}
		if err := d.receiveFile(filepath.Join(dir, e.Name())); err != nil {
			return err
		}
	}
	d.received = info.ModTime() // the removals above change the time, so the next call reads the directory once more
	return nil
}

// receiveFile adds the server of a file, and removes the file.
func (d *Driver) receiveFile(path string) error {
	s, err := readServer(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err == nil {
		err = saveServer(d.cfg.Dir, s)
	}
	if err == nil {
		err = os.Remove(path)
	}
	if err != nil {
		return err
	}
	d.servers[s.ID] = s
	if s.Power == compute.Running {
		d.scheduleCrashLocked(s)
	}
	d.sendEvent(s.ID, compute.EventStarted)
	return nil
}

// changeServer changes a server and saves it. Errors: NotFound.
func (d *Driver) changeServer(id string, f func(s *server) error) error {
	if err := checkID(id); err != nil {
		return err
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if err := d.receiveServers(); err != nil {
		return err
	}
	old := d.servers[id]
	if old == nil {
		return notFound(id)
	}
	s := *old
	if err := f(&s); err != nil {
		return err
	}
	return d.putServer(&s)
}

// putServer saves a server, and sends an event if its state has changed.
func (d *Driver) putServer(s *server) error {
	if err := saveServer(d.cfg.Dir, s); err != nil {
		return err
	}
	old := d.servers[s.ID]
	d.servers[s.ID] = s
	if s.Power != compute.Running || old != nil && s.Boots != old.Boots {
		d.closeConsolesLocked(s.ID)
	}
	if s.Power == compute.Running && (old == nil || s.Boots != old.Boots || old.Power != compute.Running) {
		d.scheduleCrashLocked(s)
	}
	if old == nil || s.Power != old.Power || s.Boots != old.Boots {
		d.sendEvent(s.ID, eventOf[s.Power])
	}
	return nil
}

// scheduleCrashLocked makes a running guest crash at the time in its metadata fake:dies, which counts from the guest's start. If this time has passed,
// because the driver was closed or the guest did not run, the guest crashes at once.
func (d *Driver) scheduleCrashLocked(s *server) {
	after, err := time.ParseDuration(s.Metadata["fake:dies"])
	if err != nil || d.closed {
		return // not set; Spawn has refused invalid values
	}
	if t := d.crashTimers[s.ID]; t != nil {
		t.Stop()
	}
	id, boots := s.ID, s.Boots
	d.crashTimers[id] = time.AfterFunc(time.Until(s.Started.Add(after)), func() {
		_ = d.changeServer(id, func(s *server) error { // an error means that the server was destroyed
			if s.Boots == boots && s.Power == compute.Running {
				s.Power = compute.Crashed
			}
			return nil
		})
	})
}

var eventOf = map[compute.PowerState]compute.EventType{
	compute.Running: compute.EventStarted, compute.Shutdown: compute.EventStopped, compute.Paused: compute.EventPaused,
	compute.Suspended: compute.EventSuspended, compute.Crashed: compute.EventCrashed,
}

func notFound(id string) error { return fault.New(fault.NotFound, "server %s does not exist", id) }

// serverCopy returns a copy of a server. The copy shares its maps, slices and pointers with the server, so the caller must not change them.
func (d *Driver) serverCopy(id string) (server, error) {
	if err := checkID(id); err != nil {
		return server{}, err
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if err := d.receiveServers(); err != nil {
		return server{}, err
	}
	s := d.servers[id]
	if s == nil {
		return server{}, notFound(id)
	}
	return *s, nil
}

// boot starts a server from the beginning.
func (s *server) boot() {
	s.Power, s.Started, s.Boots = compute.Running, time.Now().UTC(), s.Boots+1
}
