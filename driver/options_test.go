package driver_test

import (
	"encoding/json"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/armature-go/armature/driver"
	"github.com/armature-go/armature/fault"
)

type acmeOptions struct {
	Host   string            `option:"host"`
	Dir    string            `option:"dir"`
	VCPUs  int               `option:"vcpus"`
	Ratio  float64           `option:"ratio"`
	Quiet  bool              `option:"quiet"`
	Wait   time.Duration     `option:"wait"`
	Labels map[string]string `option:"label_*"`
	Colors map[string]string `option:"label_color_*"`

	Other int
}

// TestParseOptions: options are assigned by their exact names. For any other name, the
// error has this name and the nearest name. An error never contains the value of an option.
func TestParseOptions(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		name, options string
		want          acmeOptions
		says          string
	}{
		{"none", "", acmeOptions{VCPUs: 16}, ""},
		{"null", "null", acmeOptions{VCPUs: 16}, ""},
		{"texts", `{"host":"h1","vcpus":"4","ratio":"1.5","quiet":"Yes","wait":"90"}`, acmeOptions{Host: "h1", VCPUs: 4, Ratio: 1.5, Quiet: true, Wait: 90 * time.Second}, ""},
		{"JSON values", `{"vcpus":4,"ratio":1.5,"quiet":true,"wait":"1m30s"}`, acmeOptions{VCPUs: 4, Ratio: 1.5, Quiet: true, Wait: 90 * time.Second}, ""},
		{"a family", `{"label_a":"1","label_b":"2"}`, acmeOptions{VCPUs: 16, Labels: map[string]string{"a": "1", "b": "2"}}, ""},
		{"a family in a family", `{"label_a":"1","label_color_b":"2"}`, acmeOptions{VCPUs: 16, Labels: map[string]string{"a": "1"}, Colors: map[string]string{"b": "2"}}, ""},
		{"misspelled", `{"dri":"/x"}`, acmeOptions{}, "option dri: no such option; the nearest is dir"},
		{"another case", `{"Dir":"/x"}`, acmeOptions{}, "option Dir: no such option; the nearest is dir"},
		{"no tag", `{"Other":"1"}`, acmeOptions{}, "option Other: no such option"},
		{"a family without a key", `{"label_":"1"}`, acmeOptions{}, "option label_: no such option; the nearest is label_..."},
		{"not an integer", `{"vcpus":"secret"}`, acmeOptions{}, "option vcpus: is not an integer"},
		{"not a time", `{"wait":"1e300"}`, acmeOptions{}, "option wait: is out of range"},
		{"not a number", `{"ratio":"NaN"}`, acmeOptions{}, "option ratio: is not a number"},
		{"a list", `{"dir":["/x"]}`, acmeOptions{}, "option dir: is neither a text"},
		{"not an object", `["dir"]`, acmeOptions{}, "the driver's options are not a JSON object"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			got := acmeOptions{VCPUs: 16}
			err := driver.ParseOptions(json.RawMessage(tt.options), &got)
			if tt.says == "" {
				if diff := cmp.Diff(tt.want, got); err != nil || diff != "" {
					t.Errorf("%v %s", err, diff)
				}
				return
			}
			if fault.CodeOf(err) != fault.Invalid || !strings.Contains(err.Error(), tt.says) || strings.Contains(err.Error(), "secret") {
				t.Errorf("%v, want Invalid with %q", err, tt.says)
			}
		})
	}
}

// TestConfigureNull: if Options is the JSON null, Configure adds to an empty list of options.
func TestConfigureNull(t *testing.T) {
	t.Parallel()
	got := driver.PluginConfig{Options: json.RawMessage("null")}
	if err := got.Configure(map[string]string{"size": "big"}); err != nil || string(got.Options) != `{"size":"big"}` {
		t.Errorf("%s, %v", got.Options, err)
	}
}

// TestConfigure: an option of the worker service sets its field. Every other option is for the driver. A misspelled option is refused.
func TestConfigure(t *testing.T) {
	t.Parallel()
	sum := strings.Repeat("0a", 32)
	for _, tt := range []struct {
		option, value string
		want          driver.PluginConfig
		says          string
	}{
		{"plugin_sha256", sum, driver.PluginConfig{SHA256: sum}, ""},
		{"plugin_user", "acme", driver.PluginConfig{User: "acme"}, ""},
		{"plugin_max_files", "100", driver.PluginConfig{MaxFiles: 100}, ""},
		{"plugin_start_timeout", "1m", driver.PluginConfig{StartTimeout: time.Minute}, ""},
		{"plugin_start_timeout", "90", driver.PluginConfig{StartTimeout: 90 * time.Second}, ""},
		{"color", "red", driver.PluginConfig{Options: json.RawMessage(`{"color":"red","host":"h1"}`)}, ""},
		{"plugin_sha265", sum, driver.PluginConfig{}, "option plugin_sha265: no such option; the nearest is plugin_sha256"},
		{"plugin_sha512", sum, driver.PluginConfig{}, "option plugin_sha512: no such option"},
		{"plugn_sha256", sum, driver.PluginConfig{}, "option plugn_sha256: no such option; the nearest is plugin_sha256"},
		{"plugin-sha256", sum, driver.PluginConfig{}, "option plugin-sha256: no such option; the nearest is plugin_sha256"},
		{"Plugin_SHA256", sum, driver.PluginConfig{}, "option Plugin_SHA256: no such option"},
		{"plugin_sha256", "", driver.PluginConfig{}, "option plugin_sha256: \"\" is empty"},
		{"plugin_sha256", sum[1:], driver.PluginConfig{}, "64 hexadecimal digits"},
		{"plugin_user", "", driver.PluginConfig{}, "option plugin_user: \"\" is empty"},
		{"plugin_max_files", "many", driver.PluginConfig{}, "option plugin_max_files: \"many\" is not an integer"},
		{"plugin_max_memory_mib", "-1", driver.PluginConfig{}, "is too small"},
		{"plugin_start_timeout", "0", driver.PluginConfig{}, "is too small"},
	} {
		t.Run(tt.option+" "+tt.value, func(t *testing.T) {
			t.Parallel()
			got := driver.PluginConfig{Options: json.RawMessage(`{"host":"h1"}`)}
			if tt.want.Options == nil {
				tt.want.Options = got.Options
			}
			err := got.Configure(map[string]string{tt.option: tt.value})
			if tt.says != "" {
				if fault.CodeOf(err) != fault.Invalid || !strings.Contains(err.Error(), tt.says) {
					t.Errorf("%v, want Invalid with %q", err, tt.says)
				}
				return
			}
			ignore := cmp.FilterPath(func(p cmp.Path) bool { return p.Last().String() == ".Observe" }, cmp.Ignore())
			if diff := cmp.Diff(tt.want, got, ignore); err != nil || diff != "" {
				t.Errorf("%v %s", err, diff)
			}
		})
	}
}
