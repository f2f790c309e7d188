#compdef NAME
# Completion of NAME for zsh. Nothing that stands on the line is evaluated.

_NAME() {
  local -a asked found
  local line
  asked=("${(@Q)words[1,CURRENT-1]}")
  if [[ $PREFIX == -*=* ]]; then
    asked+=("${PREFIX%%=*}")
    compset -P 1 '*='
  fi
  local last=$asked[-1]
  [[ $last == -(|-)(id|status) ]] && compset -P '*,'
  [[ $PREFIX == -* ]] && asked+=("$PREFIX")
  for line in "${(@f)$("$asked[@]" --generate-shell-completion 2>/dev/null)}"; do
    [[ $PREFIX == -[^-]* && $line == --* ]] && line=${line#-}
    [[ -z $PREFIX && $last == -(|-)vm && $line != /* ]] && continue # names once one is begun
    [[ -n $line ]] && found+=("$line")
  done
  if (( $#found )); then
    _describe -t values value found
  else
    _files
  fi
}

# Sourced it is to be registered, as a file of fpath to be run.
if [[ $funcstack[1] == _NAME ]]; then
  _NAME "$@"
else
  compdef _NAME NAME
fi
