package config

import (
	"os"
	"path/filepath"
)

// Find returns the files of a program that nobody has named any for, for [Source].Files:
// the first PROJECT.conf that there is in ~/.PROJECT, ~, /etc/PROJECT and /etc, the first
// PROGRAM.conf, and then the first directories PROJECT.conf.d and PROGRAM.conf.d, as in
// oslo.config. ~ is home, such as of os.UserHomeDir; it and either name may be empty.
func Find(home, project, program string) []string {
	var dirs []string
	for _, root := range []string{home, "/etc"} {
		if root == "" {
			continue
		}
		own := filepath.Join(root, project)
		if root == home {
			own = filepath.Join(root, "."+project)
		}
		if project != "" {
			dirs = append(dirs, own)
		}
		dirs = append(dirs, root)
	}
	var out []string
	for _, ext := range []string{".conf", ".conf.d"} {
		for _, name := range []string{project, program} {
			if name == "" {
				continue
			}
			for _, dir := range dirs {
				path := filepath.Join(dir, name+ext)
				if info, err := os.Stat(path); err == nil && info.IsDir() == (ext == ".conf.d") {
					out = append(out, path)
					break
				}
			}
		}
	}
	return out
}
