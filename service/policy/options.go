package policy

import "path/filepath"

// Options are the operator's options for rules: the section [oslo_policy], in the form of package service/config. Their names are those of
// oslo.policy.
type Options struct {
	File string   `ini:"policy_file" default:"policy.yaml" protects:"true" deprecated:"DEFAULT.policy_file" help:"file of rules that replace the defaults; a relative path is relative to the first configuration file"`
	Dirs []string `ini:"policy_dirs" default:"policy.d" protects:"true" deprecated:"DEFAULT.policy_dirs" help:"directories with more files of rules, which replace those of policy_file"`
	// Each of these options accepts only its default, because its behavior is fixed: see its tag unsupported.
	Scope       bool   `ini:"enforce_scope" default:"true" protects:"true" unsupported:"the scope of a token always counts: leave it out" help:"check the scope of tokens"`
	NewDefaults bool   `ini:"enforce_new_defaults" default:"true" protects:"true" unsupported:"the older defaults of rules never count: leave it out" help:"only the newer defaults of rules count"`
	DefaultRule string `ini:"policy_default_rule" default:"default" protects:"true" unsupported:"a rule that is not defined denies: leave it out" help:"rule for rules that are not defined"`
}

// Config returns the configuration for [New], without Logger. Relative paths are relative to dir, such as that of the first configuration
// file; "" is the current directory. The function isSet reports whether a source sets an option of this section: the paths of such an option must
// exist.
func (o *Options) Config(dir string, isSet func(option string) bool) Config {
	beside := func(path string) string {
		if path == "" || filepath.IsAbs(path) {
			return path
		}
		return filepath.Join(dir, path)
	}
	cfg := Config{File: beside(o.File)}
	for _, path := range o.Dirs {
		cfg.Dirs = append(cfg.Dirs, beside(path))
	}
	if isSet("policy_file") {
		cfg.Required = append(cfg.Required, cfg.File)
	}
	if isSet("policy_dirs") {
		cfg.Required = append(cfg.Required, cfg.Dirs...)
	}
	return cfg
}
