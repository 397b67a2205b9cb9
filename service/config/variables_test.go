package config_test

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/armature-go/armature/fault"
	"github.com/armature-go/armature/service/config"
)

type paths struct {
	State    string   `ini:"state_path"`
	Logs     string   `ini:"logs"`
	Dirs     []string `ini:"dir" multi:"true"`
	Password string   `ini:"password" secret:"true"`
	Strict   bool     `ini:"strict" default:"true" strict:"true"`
	Database struct {
		URL string `ini:"url"`
	} `section:"database"`
}

// TestVariables: in lenient mode (strict = false, or Source.Lenient) variables such as $name in a value are replaced, as in
// oslo.config. In strict mode $ has no meaning.
func TestVariables(t *testing.T) {
	t.Parallel()
	const text = "state_path = $pybasedir/state\npybasedir = /usr\nlogs = ${state_path}/logs\ndir = $logs/a\ndir = $$b\npassword = pa$$word\n" +
		"[database]\nurl = sqlite:///${DEFAULT.state_path}/$name.db\nname = nova\n"
	want := paths{State: "/usr/state", Logs: "/usr/state/logs", Dirs: []string{"/usr/state/logs/a", "$b"}, Password: "pa$word"}
	want.Database.URL = "sqlite:////usr/state/nova.db"
	var got paths
	if err := config.Load(&got, config.Source{Files: write(t, "strict = false\n"+text)}); err != nil || !cmp.Equal(got, want) {
		t.Errorf("%v\n%s", err, cmp.Diff(want, got))
	}
	got = paths{}
	if err := config.Load(&got, config.Source{Files: write(t, "state_path = $a\npassword = pa$$word$1\n")}); err != nil || got.State != "$a" || got.Password != "pa$$word$1" {
		t.Errorf("strict: %+v, %v", got, err)
	}
	for bad, want := range map[string]string{
		"logs = $nothing":                        "[DEFAULT] logs: variable $nothing: option nothing does not exist; write $$ for a $",
		"logs = ${database.x}":                   "option database.x does not exist",
		"logs = $logs":                           "variable $logs refers to itself",
		"logs = $state_path\nstate_path = $logs": "variable $logs refers to itself", // through state_path
		"password = correct$horse1":              "[DEFAULT] password: the value has a variable that does not exist; write $$ for a $",
	} {
		err := config.Load(&got, config.Source{Files: write(t, bad+"\n"), Lenient: true})
		if fault.CodeOf(err) != fault.Invalid || !strings.Contains(err.Error(), want) || strings.Contains(err.Error(), "horse") {
			t.Errorf("%s: %v, want %q", bad, err, want)
		}
	}
}

// TestListsAndSections: each item of a list is checked against the tags regex and choices. An option with the tag multi
// takes one item from each line of all files, at most max. The name after the prefix of a family of
// sections, such as Acme in [Driver_Acme], keeps its case.
func TestListsAndSections(t *testing.T) {
	t.Parallel()
	type options struct {
		Name  string   `ini:"name" default:"x-1" regex:"^[a-z]-[0-9]$"`
		Names []string `ini:"names" regex:"^[a-z]+$" choices:"a,b,c"`
		Many  []string `ini:"many" multi:"true" max:"3"`

		Drivers map[string]map[string]string `sections:"driver_"`
	}
	files := write(t, "name = y-2\nnames = b, a\nmany = 1,2\nmany = 3\n", "many = 4\n[Driver_Acme]\nkey = v\n")
	var got options
	want := options{Name: "y-2", Names: []string{"b", "a"}, Many: []string{"1,2", "3", "4"}, Drivers: map[string]map[string]string{"Acme": {"key": "v"}}}
	if err := config.Load(&got, config.Source{Files: files}); err != nil || !cmp.Equal(got, want) {
		t.Errorf("options %+v, %v; want %+v", got, err, want)
	}
	c, err := config.Open[options](config.Source{Files: files, Env: []string{"OS_DEFAULT__MANY=5"}})
	if err != nil || !cmp.Equal(c.Current().Many, []string{"5"}) {
		t.Errorf("an option with the tag multi in the environment: %v, want one item", err)
	}
	for text, want := range map[string]string{
		"name = Y-2":                             `"Y-2" does not match ^[a-z]-[0-9]$`,
		"names = a,d":                            `"a,d" is not one of a, b, c`,
		"many = 1\nmany = 2\nmany = 3\nmany = 4": "has more than 3",
	} {
		if err := config.Load(&got, config.Source{Files: write(t, text+"\n")}); fault.CodeOf(err) != fault.Invalid || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v, want %q", text, err, want)
		}
	}
}

// TestFind: for each file name, Find searches the directories ~/.PROJECT, ~, /etc/PROJECT, /etc in this order and returns the first
// path that exists. In the result, files come before directories.
func TestFind(t *testing.T) {
	t.Parallel()
	home := t.TempDir()
	for _, dir := range []string{".volume", "volume-api.conf.d", ".volume/volume.conf.d"} {
		if err := os.MkdirAll(filepath.Join(home, dir), 0o750); err != nil {
			t.Fatal(err)
		}
	}
	for _, file := range []string{"volume.conf", ".volume/volume.conf", "volume-api.conf"} {
		put(t, filepath.Join(home, file), "", 0o600)
	}
	want := []string{
		filepath.Join(home, ".volume/volume.conf"), filepath.Join(home, "volume-api.conf"),
		filepath.Join(home, ".volume/volume.conf.d"), filepath.Join(home, "volume-api.conf.d"),
	}
	if diff := cmp.Diff(want, config.Find(home, "volume", "volume-api")); diff != "" {
		t.Error(diff)
	}
	if got := config.Find(t.TempDir(), "no-such-project", ""); len(got) > 0 {
		t.Errorf("Find = %q, want nothing", got)
	}
}

// FuzzValue: an option of each type accepts any value, or its error has the code Invalid. If the
// text that Values shows is loaded again, the options are the same.
func FuzzValue(f *testing.F) {
	for _, seed := range []string{"", "1", "1.5", "1m30s", "a,b", "'a,b',c", "a:1,b:2", "a:'x", "true", "::1", "1e400", "-0", "$x", "${x.y}", "$$", "\x00", "ü,ö:é", "'", `"`, ",,,", ":,:"} {
		f.Add(seed, true)
	}
	type options struct {
		Text   string            `ini:"text"`
		Number int               `ini:"number"`
		Small  uint8             `ini:"small"`
		Float  float64           `ini:"float"`
		Time   time.Duration     `ini:"time"`
		Flag   bool              `ini:"flag"`
		List   []string          `ini:"list"`
		Dict   map[string]string `ini:"dict"`
		Many   []string          `ini:"many" multi:"true"`
	}
	f.Fuzz(func(t *testing.T, value string, lenient bool) {
		for _, name := range []string{"text", "number", "small", "float", "time", "flag", "list", "dict", "many"} {
			src := config.Source{Flags: map[string]string{name: value}, Lenient: lenient}
			c, err := config.Open[options](src)
			if err != nil {
				if fault.CodeOf(err) != fault.Invalid {
					t.Errorf("%s = %q: %v, want Invalid", name, value, err)
				}
				continue
			}
			if strings.Contains(value, "://") {
				continue // a password may be hidden
			}
			for _, v := range c.Values() {
				if v.Name != name {
					continue
				}
				src.Flags[name], src.Lenient = v.Value, false
				reread, err := config.Open[options](src)
				if err != nil || !cmp.Equal(reread.Current(), c.Current()) {
					t.Errorf("%s = %q, shown as %q: %v", name, value, v.Value, err)
				}
			}
		}
	})
}
