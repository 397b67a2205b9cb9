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

// ext ends the name of a server's file; half begins the name of one that is not
// written to its end; counts, incoming and images are directories.
const (
	ext, half = ".json", ".half-"
	counts    = "counts"
	incoming  = "incoming"
	images    = "images"
)

// server is what there is of one, and what its file holds.
type server struct {
	compute.Instance

	Before   *compute.Resources `json:"before,omitempty"` // what it had before a resize that is not confirmed
	Image    string             `json:"image"`
	Metadata map[string]string  `json:"metadata,omitempty"`
	Started  time.Time          `json:"started"`
	Boots    int                `json:"boots"`
}

var validID = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$`)

func checkID(id string) error {
	if !validID.MatchString(id) {
		return fault.New(fault.Invalid, "%q is not a server's id", id)
	}
	return nil
}

// load reads the servers that are in the directory.
func (d *Driver) load() error {
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
		case strings.HasPrefix(e.Name(), half): // what a killed driver was writing is nobody's server
			err = os.Remove(path)
		case filepath.Ext(e.Name()) == ext:
			var s *server
			if s, err = read(path); err == nil {
				d.servers[s.ID] = s
			}
		}
		if err != nil {
			return fmt.Errorf("fake driver: %w", err)
		}
	}
	return nil
}

func read(path string) (*server, error) {
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

// save writes a server's file, which appears whole or not at all when the process
// is killed.
func save(dir string, s *server) error {
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

// receive takes over the servers that other hosts have sent.
func (d *Driver) receive() error {
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
		s, err := read(filepath.Join(dir, e.Name()))
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err == nil {
			err = save(d.cfg.Dir, s)
		}
		if err == nil {
			err = os.Remove(filepath.Join(dir, e.Name()))
		}
		if err != nil {
			return err
		}
		d.servers[s.ID] = s
		d.tell(s.ID, compute.EventStarted)
	}
	d.received = info.ModTime() // older than our removals: looked at once more
	return nil
}

// change changes a server and keeps the change. NotFound if there is none.
func (d *Driver) change(id string, f func(s *server) error) error {
	if err := checkID(id); err != nil {
		return err
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if err := d.receive(); err != nil {
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
	return d.put(&s)
}

// put keeps a server as it now is, and tells what has changed.
func (d *Driver) put(s *server) error {
	if err := save(d.cfg.Dir, s); err != nil {
		return err
	}
	old := d.servers[s.ID]
	d.servers[s.ID] = s
	if old == nil || s.Boots != old.Boots {
		d.doom(s)
	}
	if old == nil || s.Power != old.Power || s.Boots != old.Boots {
		d.tell(s.ID, eventOf[s.Power])
	}
	return nil
}

// doom makes a guest that was started crash later, if its metadata want it.
func (d *Driver) doom(s *server) {
	after, err := time.ParseDuration(s.Metadata["fake:dies"])
	if err != nil || d.closed {
		return // none, or refused by Spawn
	}
	if t := d.dying[s.ID]; t != nil {
		t.Stop()
	}
	id, boots := s.ID, s.Boots
	d.dying[id] = time.AfterFunc(after, func() {
		_ = d.change(id, func(s *server) error { // it may be gone
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

func notFound(id string) error { return fault.New(fault.NotFound, "there is no server %s", id) }

// look returns a server as it is. What it points to must not be changed.
func (d *Driver) look(id string) (server, error) {
	if err := checkID(id); err != nil {
		return server{}, err
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if err := d.receive(); err != nil {
		return server{}, err
	}
	s := d.servers[id]
	if s == nil {
		return server{}, notFound(id)
	}
	return *s, nil
}

// boot makes a server run from its beginning.
func (s *server) boot() {
	s.Power, s.Started, s.Boots = compute.Running, time.Now().UTC(), s.Boots+1
}
